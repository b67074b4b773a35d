/* Labels at full size straight from low-resolution logits, in C: those of litheseg in Python, bit by bit.

   That is bilinear interpolation (pixel centres aligned, as PyTorch's align_corners=False) followed by argmax, without
   the full-size logits in between; litheseg/masks/upsampling.py says how. Add upsampling.c to the program, compiled with
   -O3 -ffp-contract=off. */

#ifndef LITHESEG_UPSAMPLING_H
#define LITHESEG_UPSAMPLING_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Label an image; any number of threads may call at once.

   logits        classes x height x width, rows without gaps
   classes       1 to 255
   class_stride  floats from one class to the next: height * width, or more, such as cstep of an ncnn::Mat
   labels        rows x columns; written
   rows, columns of the image, larger or smaller than height and width

   Returns 0, or -1 where a number is out of range or memory is short; labels are then as they were. */
int litheseg_upsample_labels(const float *logits, int classes, int height, int width, size_t class_stride,
                             uint8_t *labels, int rows, int columns);

#ifdef __cplusplus
}
#endif

#endif

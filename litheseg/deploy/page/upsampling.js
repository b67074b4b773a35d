// Labels at full size straight from low-resolution logits, without ever forming the full-size logits: the reference in
// JavaScript of `litheseg.masks.upsampling`, which explains the method. All arithmetic is float32, in the same order, so
// that the labels are the same bit by bit.

const { fround } = Math;

/**
 * Where the pixels of an axis lie between its samples: `litheseg.masks.axes.axis_of`.
 *
 * @returns {{low: Float32Array, high: Float32Array, starts: Int32Array, step: 0 | 1}}  weights of each pixel's lower and
 *     upper sample, and the first pixel of each cell
 */
export function axisOf(samples, pixels) {
  const [low, high, starts] = [new Float32Array(pixels), new Float32Array(pixels), new Int32Array(samples + 1)];
  for (let pixel = 0; pixel < pixels; pixel++) {
    const position = Math.max((2 * pixel + 1) * samples - pixels, 0); // in 1 / (2 pixels)
    const lower = Math.min(Math.floor(position / (2 * pixels)), samples - 1);
    high[pixel] = position / (2 * pixels) - lower;
    low[pixel] = 1 - high[pixel];
    starts[lower + 1]++;
  }
  for (let sample = 0; sample < samples; sample++) starts[sample + 1] += starts[sample];
  return { low, high, starts, step: samples === pixels ? 0 : 1 };
}

/**
 * Labels every pixel with the largest of the interpolated logits.
 *
 * @param {Float32Array} logits  K x h x w
 * @param {[number, number, number]} shape  K, h and w; K of 1 to 255
 * @param {[number, number]} size  H and W, larger or smaller than h and w
 * @returns {Uint8Array}  H x W
 */
export function upsampleLabels(logits, [classes, height, width], [tall, wide]) {
  const [rows, columns] = [axisOf(height, tall), axisOf(width, wide)];
  const job = { logits, classes, plane: height * width, rows, columns, wide, labels: new Uint8Array(tall * wide) };
  const winners = winnersOf(job);
  const beaten = new Uint8Array(classes);
  const corners = new Int32Array(4);
  for (let row = 0; row < height; row++) {
    if (rows.starts[row] === rows.starts[row + 1]) continue;
    const below = Math.min(row + rows.step, height - 1) * width;
    for (let column = 0; column < width; column++) {
      if (columns.starts[column] === columns.starts[column + 1]) continue;
      const right = Math.min(column + columns.step, width - 1);
      corners.set([row * width + column, row * width + right, below + column, below + right]);
      const winner = winners[corners[0]];
      const sure = winner < classes && corners.every((corner) => winners[corner] === winner);
      if (sure) fillCell(job, row, column, winner);
      else interpolateCell(job, row, column, corners, options(job, corners, winners, beaten));
    }
  }
  return job.labels;
}

/** The first largest class of each sample; 255 where one is not finite. */
function winnersOf({ logits, classes, plane }) {
  const winners = new Uint8Array(plane);
  for (let sample = 0; sample < plane; sample++) {
    let best = logits[sample];
    let finite = Number.isFinite(best);
    for (let label = 1, at = sample + plane; label < classes; label++, at += plane) {
      finite &&= Number.isFinite(logits[at]);
      if (logits[at] > best) {
        best = logits[at];
        winners[sample] = label;
      }
    }
    if (!finite) winners[sample] = 255;
  }
  return winners;
}

function fillCell({ rows, columns, wide, labels }, row, column, winner) {
  for (let y = rows.starts[row]; y < rows.starts[row + 1]; y++) {
    labels.fill(winner, y * wide + columns.starts[column], y * wide + columns.starts[column + 1]);
  }
}

/** The classes that may win in a cell: not those that another beats at all four corners. */
function options({ logits, classes, plane }, corners, winners, beaten) {
  const all = Array.from({ length: classes }, (_, label) => label);
  if (corners.some((corner) => winners[corner] === 255)) return all;
  beaten.fill(0);
  for (const corner of corners) {
    const winner = winners[corner];
    for (let label = 0; label < classes; label++) {
      let [larger, equal] = [true, true];
      for (const each of corners) {
        const [best, value] = [logits[winner * plane + each], logits[label * plane + each]];
        larger &&= best > value;
        equal &&= best >= value;
      }
      if (larger || (equal && winner < label)) beaten[label] = 1;
    }
  }
  return all.filter((label) => !beaten[label]);
}

/** Labels the pixels of a cell with the largest of the classes that may win. */
function interpolateCell({ logits, plane, rows, columns, wide, labels }, row, column, corners, candidates) {
  const [one, two, three, four] = corners;
  const ends = new Float32Array(2 * candidates.length);
  for (let y = rows.starts[row]; y < rows.starts[row + 1]; y++) {
    const [low, high] = [rows.low[y], rows.high[y]];
    candidates.forEach((label, k) => {
      const from = label * plane;
      ends[2 * k] = fround(logits[from + one] * low) + fround(logits[from + three] * high);
      ends[2 * k + 1] = fround(logits[from + two] * low) + fround(logits[from + four] * high);
    });
    for (let x = columns.starts[column]; x < columns.starts[column + 1]; x++) {
      const [near, far] = [columns.low[x], columns.high[x]];
      let best = 0;
      let chosen = -1;
      for (let k = 0; k < candidates.length; k++) {
        const value = fround(fround(ends[2 * k] * near) + fround(ends[2 * k + 1] * far));
        // "Not smaller or equal" rather than "larger": not a number is the largest, and the first one of them.
        if (chosen < 0 || (!(value <= best) && best === best)) {
          best = value;
          chosen = candidates[k];
        }
      }
      labels[y * wide + x] = chosen;
    }
  }
}

"""What network files say of themselves, read without the libraries that wrote them and compared with what those say."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from tiny_onnx import entry, field, tiny_onnx, varint

from litheseg.bundle.description import _MESSAGES, read_description, read_onnx
from litheseg.errors import BundleError

TEXT = json.dumps({"names": ['a "b" <c> & d', "Straße\n"]})


def _xml(path: Path, inside: str, before: str = "") -> Path:
    path.with_suffix(".bin").write_bytes(b"")
    path.write_text(f'<?xml version="1.0"?>\n{before}<net name="x" version="11">{inside}</net>', encoding="utf-8")
    return path


# --- ONNX


def _model(tmp_path: Path) -> Path:
    """By the package: weights inside and outside, in branches and in attributes, and texts of several kinds."""
    onnx = pytest.importorskip("onnx")
    helper, numpy = onnx.helper, pytest.importorskip("numpy")
    (tmp_path / "weights.bin").write_bytes(bytes(64))

    def outside(name: str) -> object:
        tensor = onnx.TensorProto(name=name, data_type=1, dims=[4], data_location=onnx.TensorProto.EXTERNAL)
        for key, value in (("location", "weights.bin"), ("offset", "0"), ("length", "16")):
            tensor.external_data.add(key=key, value=value)
        return tensor

    inside = onnx.numpy_helper.from_array(numpy.arange(5000, dtype="f4"), "inside")
    branch = helper.make_graph([helper.make_node("Constant", [], ["y"], value=outside("c"))], "branch", [], [])
    nodes = [helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)]
    graph = helper.make_graph(nodes, "graph", [], [], [inside, outside("outside")])
    model = helper.make_model(graph, producer_name="somebody", doc_string="x" * 1000)
    helper.set_model_props(model, {"author": "somebody", "litheseg": TEXT})
    onnx.save_model(model, str(tmp_path / "model.onnx"))
    return tmp_path / "model.onnx"


def test_an_onnx_file_says_what_the_package_says(tmp_path: Path) -> None:
    path = _model(tmp_path)
    onnx = pytest.importorskip("onnx")
    model = onnx.load(str(path), load_external_data=False)
    found = read_onnx(path)
    assert found.metadata == {item.key: item.value for item in model.metadata_props}
    assert found.files == ("weights.bin",)
    assert read_description(path) == TEXT


def test_the_numbers_of_the_fields_are_the_packages() -> None:
    onnx = pytest.importorskip("onnx")
    for kind, numbers in _MESSAGES.items():
        descriptor = getattr(onnx, kind).DESCRIPTOR
        known = {field.number: field.message_type.name for field in descriptor.fields if field.message_type is not None}
        wanted = {*_MESSAGES, "StringStringEntryProto"} - {"ModelProto"}
        ours = {number: name for number, name in known.items() if name in wanted}
        # Notes beside nodes, graphs and tensors are nobody's account.
        notes = {field.number for field in descriptor.fields if field.name == "metadata_props" and kind != "ModelProto"}
        ours = {number: name for number, name in ours.items() if number not in notes}
        if kind == "TrainingInfoProto":
            ours = {number: name for number, name in ours.items() if "Entry" not in name}
        assert {number: name for number, name in numbers.items() if number in known} == ours, kind


def test_every_truncation_of_an_onnx_file_is_an_error_or_says_less(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    path, whole = _model(tmp_path), (tmp_path / "model.onnx").read_bytes()
    for length in [*range(0, 60), *range(60, len(whole), 997), *range(len(whole) - 60, len(whole))]:
        path.write_bytes(whole[:length])
        try:
            model = onnx.load(str(path), load_external_data=False)
        except Exception:
            with pytest.raises(BundleError, match=r"model\.onnx is damaged"):
                read_onnx(path)
        else:
            assert read_onnx(path).metadata == {item.key: item.value for item in model.metadata_props}


@pytest.mark.parametrize(
    "content",
    [
        varint(7 << 3 | 2) + varint(1 << 62),  # a graph that is longer than the file
        varint(7 << 3 | 2) + b"\xff" * 11,  # a number without an end
        field(7, varint(5 << 3 | 2) + varint(100)) + bytes(200),  # longer than the graph that holds it
        field(14, varint(2 << 3 | 2) + varint(1 << 40)),
        field(14, field(1, "litheseg") + field(2, b"\xff\xfe")),  # no text
        varint(0),
        varint(1 << 3 | 3),  # a group
        b"hello, this is no protobuf",
    ],
)
def test_hostile_onnx_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "hostile.onnx"
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"hostile\.onnx is damaged, or no ONNX file"):
        read_description(path)


def test_messages_without_end_within_each_other(tmp_path: Path) -> None:
    content = b""
    for _ in range(3000):  # graph > node > attribute > graph > ...
        content = field(1, field(5, field(6, content)))
    (tmp_path / "deep.onnx").write_bytes(field(7, content))
    with pytest.raises(BundleError, match="too deep"):
        read_description(tmp_path / "deep.onnx")


def test_a_text_that_would_fill_the_memory_is_not_read(tmp_path: Path) -> None:
    path, size = tmp_path / "large.onnx", 1 << 33
    head = varint(1 << 3 | 2) + varint(8) + b"litheseg" + varint(2 << 3 | 2) + varint(size)
    with path.open("wb") as file:
        file.write(varint(14 << 3 | 2) + varint(len(head) + size) + head)
        file.seek(size, 1)  # a hole: the file takes no space
        file.truncate()
    with pytest.raises(BundleError, match=r"a text of \d+ bytes"):
        read_description(path)


@pytest.mark.parametrize("name", ["../weights.bin", "/etc/hostname", "C:\\weights.bin", "a/../../b", "a\\..\\..\\b"])
def test_weights_elsewhere_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "weights.bin").write_bytes(b"")
    (tmp_path / "export").mkdir()
    path = tmp_path / "export" / "model.onnx"
    path.write_bytes(tiny_onnx(TEXT, name))
    with pytest.raises(BundleError, match="outside its folder"):
        read_description(path)


def test_weights_that_stayed_behind_are_named(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(tiny_onnx(TEXT, "weights.bin"))
    with pytest.raises(BundleError, match=r"model\.onnx lacks its weights, weights\.bin; copy both"):
        read_description(tmp_path / "model.onnx")
    (tmp_path / "network.xml").write_text("<net/>")
    with pytest.raises(BundleError, match=r"network\.xml lacks its weights, network\.bin; copy both"):
        read_description(tmp_path / "network.xml")


def test_an_account_among_others_notes_is_no_account(tmp_path: Path) -> None:
    inside_the_graph = field(7, field(16, entry("litheseg", TEXT)))
    (tmp_path / "model.onnx").write_bytes(inside_the_graph)
    with pytest.raises(BundleError, match="was not exported by litheseg"):
        read_description(tmp_path / "model.onnx")


# --- OpenVINO


def test_an_openvino_file_says_what_the_package_says(tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    from openvino import opset13 as ops

    value = ops.parameter([1, 3], name="x")
    model = openvino.Model([ops.relu(value)], [value], "tiny")
    model.set_rt_info(TEXT, "litheseg")
    openvino.save_model(model, tmp_path / "network.xml")
    read = openvino.Core().read_model(str(tmp_path / "network.xml"))
    assert read_description(tmp_path / "network.xml") == read.get_rt_info("litheseg").astype(str) == TEXT


def test_xml_that_defines_its_own_texts(tmp_path: Path) -> None:
    bomb = '<!DOCTYPE net [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>\n'
    path = _xml(tmp_path / "bomb.xml", '<rt_info><litheseg value="&b;"/></rt_info>', bomb)
    with pytest.raises(BundleError, match=r"bomb\.xml cannot be read \(it has a DOCTYPE"):
        read_description(path)
    outside = '<!DOCTYPE net SYSTEM "file:///etc/hostname">\n'
    with pytest.raises(BundleError, match="DOCTYPE"):
        read_description(_xml(tmp_path / "outside.xml", "", outside))


@pytest.mark.parametrize(
    "inside",
    [
        "",
        '<layers><layer><rt_info><litheseg value="x"/></rt_info></layer></layers>',  # of a layer, not of the network
        '<rt_info><info><litheseg value="x"/></info></rt_info>',
        "<rt_info><litheseg/></rt_info>",
    ],
)
def test_xml_without_an_account(tmp_path: Path, inside: str) -> None:
    with pytest.raises(BundleError, match="was not exported by litheseg"):
        read_description(_xml(tmp_path / "other.xml", inside))


def test_truncated_xml(tmp_path: Path) -> None:
    path = _xml(tmp_path / "network.xml", '<rt_info><litheseg value="x"/></rt_info>')
    whole = path.read_bytes()
    for length in (0, 10, 40, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(BundleError, match=r"network\.xml cannot be read"):
            read_description(path)


def test_xml_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    path = _xml(tmp_path / "network.xml", "")
    with path.open("rb+") as file:
        file.truncate(1 << 33)
    with pytest.raises(BundleError, match="more than 67,108,864 bytes"):
        read_description(path)


# --- archives


def test_archives_that_unpack_to_more_or_say_it_twice(tmp_path: Path) -> None:
    path = tmp_path / "network.pt2"
    for kind, count, message in ((zipfile.ZIP_DEFLATED, 1, "compressed"), (zipfile.ZIP_STORED, 2, "2 accounts")):
        with zipfile.ZipFile(path, "w", kind) as archive:
            for index in range(count):
                archive.writestr(f"{index}/extra/litheseg.json", " " * 10_000)
        with pytest.raises(BundleError, match=message):
            read_description(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/extra/litheseg.json", " " * ((1 << 24) + 1))
    with pytest.raises(BundleError, match=r"larger than 16,777,216 bytes"):
        read_description(path)


def test_a_directory_that_lies_about_a_size(tmp_path: Path) -> None:
    path = tmp_path / "network.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/extra/litheseg.json", TEXT)
    whole, size = path.read_bytes(), len(TEXT.encode()).to_bytes(4, "little")
    path.write_bytes(whole.replace(size, (1 << 31).to_bytes(4, "little")))
    with pytest.raises(BundleError, match=r"network\.pt2 cannot be read"):
        read_description(path)


def test_nothing_heavy_is_imported() -> None:
    heavy = "torch safetensors onnx onnxruntime openvino"
    code = f"""import sys
import litheseg.bundle.exported, litheseg.bundle.model_file
print([name for name in {heavy.split()} if name in sys.modules])"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"

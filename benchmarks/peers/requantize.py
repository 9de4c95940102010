"""A Q4_0 copy of a GGUF file, for llama.cpp's fastest CPU kernels. It needs the gguf package, no compiler."""

from __future__ import annotations

from pathlib import Path

from gguf import GGMLQuantizationType as Format
from gguf import GGUFReader, GGUFValueType, GGUFWriter
from gguf.quants import dequantize, quantize

_FOUR_BIT = (Format.Q4_1, Format.Q4_K, Format.Q5_1)
_MORE_BITS = (Format.Q5_K, Format.Q6_K)
_FILE_TYPE_Q4_0 = 2
_WRITTEN_BY_THE_WRITER = ("general.architecture", "general.file_type")


def write_q4_0(source: Path, target: Path) -> None:
    """Copy `source`: 4- and 5-bit tensors become Q4_0, 6-bit ones Q8_0; all else stays as it is."""
    staging = target.with_name(f".{target.name}.new")
    reader = GGUFReader(source)
    writer = GGUFWriter(staging, reader.get_field("general.architecture").contents())
    try:
        _copy_fields(reader, writer)
        for tensor in reader.tensors:
            wanted = _wanted(tensor.tensor_type)
            data = tensor.data
            if wanted != tensor.tensor_type:
                data = quantize(dequantize(data, tensor.tensor_type), wanted)
            writer.add_tensor(tensor.name, data, raw_dtype=wanted)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        staging.replace(target)
    finally:
        staging.unlink(missing_ok=True)


def _copy_fields(reader: GGUFReader, writer: GGUFWriter) -> None:
    for field in reader.fields.values():
        if field.name in _WRITTEN_BY_THE_WRITER or field.name.startswith("GGUF."):
            continue
        inner = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), field.types[0], inner)
    writer.add_file_type(_FILE_TYPE_Q4_0)


def _wanted(format: Format) -> Format:  # noqa: A002 - it is what the library calls it
    if format in _FOUR_BIT:
        return Format.Q4_0
    return Format.Q8_0 if format in _MORE_BITS else format

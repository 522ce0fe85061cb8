"""Files as gguf-py writes them."""

import gguf


def write_gguf(path, tensors, qtype, vectors="F32"):
    """As gguf-py writes it: matrices in `qtype`, the rest in `vectors`."""
    packed = {}
    for name, tensor in tensors.items():
        kind = qtype if tensor.ndim == 2 else vectors
        packed[name] = gguf.quantize(tensor.float().numpy(), gguf.GGMLQuantizationType[kind]), kind
    return write_packed(path, packed)


def write_packed(path, packed):
    """{name: (values or packed rows, qtype)} as gguf-py writes them."""
    writer = gguf.GGUFWriter(path, "flux")
    for name, (values, qtype) in packed.items():
        writer.add_tensor(name, values, raw_dtype=gguf.GGMLQuantizationType[qtype])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path

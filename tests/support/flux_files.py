"""Files as gguf-py writes them."""

import gguf


def write_gguf(path, tensors, qtype, vectors="F32"):
    """As gguf-py writes it: matrices in `qtype`, the rest in `vectors`."""
    writer = gguf.GGUFWriter(path, "flux")
    for name, tensor in tensors.items():
        kind = gguf.GGMLQuantizationType[qtype if tensor.ndim == 2 else vectors]
        writer.add_tensor(name, gguf.quantize(tensor.float().numpy(), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path

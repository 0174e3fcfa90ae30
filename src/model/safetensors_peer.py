# A second implementation of safetensors, after the format's description, for the interoperability test.
# write FILE: a file of known tensors. read FILE: prints "name dtype shape crc32-of-bytes" of each tensor.
import json
import struct
import sys
import zlib

import numpy

TYPES = {"F32": numpy.float32, "F64": numpy.float64, "F16": numpy.float16, "I64": numpy.int64, "U8": numpy.uint8, "BOOL": numpy.bool_}


def write(path):
    tensors = {
        "weights": ("F32", numpy.arange(24, dtype=numpy.float32).reshape(2, 3, 4) / 7),
        "empty": ("F16", numpy.zeros((0, 5), numpy.float16)),
        "counter": ("I64", numpy.array(-3, numpy.int64)),
        "mask \u00e9\"": ("BOOL", numpy.array([True, False, True])),
    }
    header, data = {"__metadata__": {"made by": "peer"}}, b""
    for name, (dtype, array) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [len(data), len(data) + array.nbytes]}
        data += array.tobytes()
    text = json.dumps(header).encode()
    open(path, "wb").write(struct.pack("<Q", len(text)) + text + data)


def read(path):
    raw = open(path, "rb").read()
    (length,) = struct.unpack("<Q", raw[:8])
    header, data = json.loads(raw[8 : 8 + length]), raw[8 + length :]
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        array = numpy.frombuffer(data[begin:end], TYPES[entry["dtype"]]).reshape(entry["shape"])
        print(name, entry["dtype"], list(array.shape), zlib.crc32(array.tobytes()))


{"write": write, "read": read}[sys.argv[1]](sys.argv[2])

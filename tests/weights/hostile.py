"""Malicious and damaged files of weights: each must end in one error, and run nothing."""

import io
import json
import pickle
import struct
import subprocess
import zipfile

from fpnlab.weights.torch_file import MAGIC_NUMBER, PROTOCOL_VERSION

PROTO = b"\x80\x02"


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def integer(value):
    return b"J" + struct.pack("<i", value)


def long(value):
    return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)


def archive(content, *, storages=(("0", bytes(16)),), compression=zipfile.ZIP_STORED, root="m"):
    """A zip archive of a pickle and storages, as torch.save writes it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as out:
        out.writestr(f"{root}/data.pkl", content)
        out.writestr(f"{root}/byteorder", b"little")
        for key, values in storages:
            out.writestr(f"{root}/data/{key}", values)
    return buffer.getvalue()


def old(content, *, storages=(("0", 4, bytes(16)),), keys=None):
    """A file of the old format: pickles in a row, then the storages."""
    heads = (MAGIC_NUMBER, PROTOCOL_VERSION, {"little_endian": True})
    keys = [key for key, _, _ in storages] if keys is None else keys
    return b"".join(
        [
            *(pickle.dumps(head, 2) for head in heads),
            content,
            pickle.dumps(keys, 2),
            *(struct.pack("<q", count) + values for _, count, values in storages),
        ]
    )


def storage(key="0", count=4, kind="FloatStorage", view=b""):
    reference = text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu")
    return b"(" + reference + long(count) + view + b"tQ"


def tensor(of=None, offset=0, size=(4,), stride=(1,)):
    """A pickle of {"w": tensor}, whose numbers need not be right."""
    row = lambda values: b"(" + b"".join(map(long, values)) + b"t"
    arguments = (of or storage()) + long(offset) + row(size) + row(stride) + b"\x89" + b")"
    call = b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR"
    return PROTO + b"}" + text("w") + call + b"s."


def safe(table, values=b""):
    head = table if isinstance(table, bytes) else json.dumps(table).encode()
    return len(head).to_bytes(8, "little") + head + values


class Call:
    """An object whose pickle calls a function when it is loaded."""

    def __init__(self, function, *arguments):
        self.made = function, arguments

    def __reduce__(self):
        return self.made


class Stateful:
    """An object whose pickle calls its `__setstate__`."""

    def __getstate__(self):
        return {"a": 1}

    def __setstate__(self, state):
        raise AssertionError("the file was run")


def code(marker):
    """Malicious pickles by name; each would create the file ``marker``."""
    make = f"open({str(marker)!r}, 'w')"
    touch = f"touch {marker}"
    called = lambda module, name, argument: (
        PROTO + f"c{module}\n{name}\n".encode() + b"(" + text(argument) + b"tR."
    )
    getattr_chain = (
        PROTO
        + b"cbuiltins\ngetattr\n(cbuiltins\n__import__\n("
        + text("os")
        + b"tR"
        + text("system")
        + b"tR("
        + text(touch)
        + b"tR."
    )
    return {
        "os.system": called("os", "system", touch),
        "posix.system": called("posix", "system", touch),
        "eval": called("builtins", "eval", make),
        "exec": called("builtins", "exec", make),
        "eval of Python 2": called("__builtin__", "eval", make),
        "open": PROTO + b"cbuiltins\nopen\n(" + text(str(marker)) + text("w") + b"tR.",
        "a chain of getattr": getattr_chain,
        "a dotted name": PROTO
        + text("torch")
        + text("os.system")
        + b"\x93("
        + text(touch)
        + b"tR.",
        "a subprocess": pickle.dumps(Call(subprocess.call, ["touch", str(marker)]), 4),
        "a class with __setstate__": pickle.dumps(Stateful(), 2),
        "copyreg": called("copyreg", "_reconstructor", touch),
        "runpy": called("runpy", "run_path", str(marker)),
        "torch.load": called("torch", "load", str(marker)),
        "torch.hub": called("torch.hub", "load_state_dict_from_url", "http://localhost/"),
        "INST": PROTO + b"(" + text(touch) + b"ios\nsystem\n.",
        "OBJ": PROTO + b"(cos\nsystem\n" + text(touch) + b"o.",
        "OBJ of a known name": PROTO + b"(ctorch\nSize\n" + text(touch) + b"o.",
        "EXT1": PROTO + b"\x82\x01.",
        "EXT4": PROTO + b"\x84\x01\x00\x00\x00.",
        "NEWOBJ": PROTO + b"csubprocess\nPopen\n(" + text(touch) + b"t\x81.",
        "NEWOBJ_EX": b"\x80\x04ctorch\ndevice\n)}\x92.",
        "a persistent id of text": b"\x80\x00Pos.system\n.",
        "a call of text": PROTO + text("os.system") + b"(" + text(touch) + b"tR.",
        "BUILD on a tensor": tensor()[:-2] + b"}" + text("__setstate__") + b"cos\nsystem\nsb.",
        "BUILD on a tensor, without a name": tensor()[:-2] + b"}b.",
        "BUILD on a name": PROTO + b"ccollections\nOrderedDict\n}b.",
        "a call beside weights": tensor()[:-1]
        + text("x")
        + called("os", "system", touch)[2:-1]
        + b"s.",
    }


def nested(opening, closing=b""):
    return PROTO + opening * 200_000 + closing * 200_000 + b"."


def doubled(times=64):
    """A tuple of twice the same tuple, 64 deep: 2**64 in all, if it is walked."""
    return b")" + b"q\x00h\x00\x86" * times


def lying():
    """Damaged and oversized pickles, with the files that hold them, by name."""
    pickles = {
        "negative size": tensor(size=(-4,)),
        "negative stride": tensor(stride=(-1,)),
        "negative offset": tensor(offset=-1),
        "size too large": tensor(size=(5,)),
        "offset too large": tensor(offset=1),
        "stride too large": tensor(size=(2, 2), stride=(3, 1)),
        "size overflows": tensor(size=(2**62, 8), stride=(0, 1)),
        "size of more than 64 bits": tensor(size=(2**70,)),
        "zeros of terabytes": tensor(size=(2**40,), stride=(0,)),
        "empty of terabytes": tensor(size=(0, 2**60), stride=(0, 0)),
        "size and stride differ": tensor(size=(2, 2), stride=(1,)),
        "100 axes": tensor(size=(1,) * 100, stride=(0,) * 100),
        "size of text": tensor().replace(b"(" + long(4) + b"t", b"(" + text("4") + b"t"),
        "storage too large": tensor(storage(count=2**40), size=(2**40,)),
        "storage of half the size": tensor(storage(count=2), size=(2,)),
        "negative storage": tensor(storage(count=-1), size=(0,)),
        "storage overflows": tensor(storage(count=2**70)),
        "storage missing": tensor(storage(key="7")),
        "storage of another class": tensor(storage(kind="QInt8Storage")),
        "no tensor": PROTO + b"}" + text("w") + integer(3) + b"s.",
        "no dict": PROTO + b"].",
        "an empty dict": PROTO + b"}.",
        "itself": PROTO + b"}q\x00" + text("state_dict") + b"h\x00s.",
        "no names": tensor().replace(text("w"), integer(3)),
        "deep lists": nested(b"]", b"a"),
        "deep tuples": PROTO + b")" + b"\x85" * 400_000 + b".",
        "deep marks": nested(b"("),
        "many instructions": PROTO + b"}" * 2**23 + b".",
        "many tensors of one storage": many_views(),
        "a tuple of itself as a key": PROTO + b"}" + doubled() + b"Ns.",
        "a tuple of itself as a value": PROTO + b"}" + text("w") + doubled() + b"s.",
        "a tuple of itself as a name": PROTO + doubled() + doubled() + b"\x93.",
        "a tuple of itself as a size": PROTO + b"ctorch\nSize\n" + doubled() + b"R.",
        "a tuple of itself as a storage": PROTO + doubled() + b"Q.",
        "a huge integer": PROTO + b"\x8b" + struct.pack("<i", 2**20) + b"\x7f" * 2**20 + b".",
        "a huge decimal": b"I" + b"9" * 2**20 + b"\n.",
        "keys with one hash": PROTO
        + b"}("
        + b"".join(
            b"\x8a\x10" + (i * (2**61 - 1)).to_bytes(16, "little") + b"N" for i in range(60_000)
        )
        + b"u.",
        "text longer than the file": PROTO + b"X\xff\xff\xff\xff" + b"a.",
        "text of 2**63 bytes": b"\x80\x04\x8d" + struct.pack("<Q", 2**63) + b"a.",
        "text that is no UTF-8": PROTO + b"X\x02\x00\x00\x00\xff\xff.",
        "a long name": PROTO + b"c" + b"a" * 2**20 + b"\nb\n.",
        "memo missing": PROTO + b"h\x07.",
        "memo far away": PROTO + b"}r\xff\xff\xff\xffj\xff\xff\xff\x7f.",
        "nothing on the stack": PROTO + b".",
        "no mark": PROTO + b"t.",
        "half a pair": PROTO + b"}(Nu.",
        "items of a number": PROTO + integer(1) + b"(Ntu.",
        "appended to a dict": PROTO + b"}Na.",
        "out-of-band buffers": b"\x80\x05\x97.",
        "an unknown instruction": PROTO + b"\xfe.",
        "nothing at all": b"",
    }
    files = {name: archive(content) for name, content in pickles.items()}
    return files | archives() | old_files() | safe_files()


def many_views():
    """A gigabyte in tensors that share a storage of 16 bytes with stride 0."""
    body = tensor(size=(2**14,), stride=(0,))[3:-1]
    entries = [body.replace(text("w"), text(f"w{i}"), 1) for i in range(2**11)]
    return PROTO + b"}" + b"".join(entries) + b"."


def archives():
    """Zip files that lie."""
    whole = archive(tensor())
    entry = whole.index(b"PK\x01\x02")
    end = whole.rindex(b"PK\x05\x06")
    put = lambda at, kind, value: (
        whole[:at] + struct.pack(kind, value) + whole[at + struct.calcsize(kind) :]
    )
    with_two = io.BytesIO(archive(tensor()))
    with zipfile.ZipFile(with_two, "a") as out:
        out.writestr("n/data.pkl", tensor())
    bomb = archive(tensor() + bytes(10**8), compression=zipfile.ZIP_DEFLATED)
    twice = archive(tensor(), storages=(("0", bytes(16)), ("1", bytes(16)))).replace(
        b"data/1", b"data/0"
    )
    return {
        "a zip bomb": bomb,
        "a storage twice": twice,
        "two pickles": with_two.getvalue(),
        "no pickle": archive(tensor()).replace(b"data.pkl", b"data.abc"),
        "TorchScript": torchscript(),
        "an entry larger than the file": put(entry + 24, "<L", 2**31),
        "an entry after the end": put(entry + 42, "<L", 2**31),
        "an entry of 64 bits without them": put(entry + 42, "<L", 2**32 - 1),
        "a directory after the end": put(end + 16, "<L", 2**31),
        "a directory larger than the file": put(end + 12, "<L", 2**22),
        "a directory with too many entries": put(end + 10, "<H", 60_000),
        "a name longer than the directory": put(entry + 28, "<H", 60_000),
        "an encrypted entry": put(entry + 8, "<H", 1),
        "another checksum": put(whole.index(b"m/data.pkl") + 30, "B", 0x11),
        "entries on one another": overlapping(),
        "a zip with nothing": b"PK\x05\x06" + bytes(18),
    }


def torchscript():
    buffer = io.BytesIO(archive(tensor()))
    with zipfile.ZipFile(buffer, "a") as out:
        out.writestr("m/constants.pkl", PROTO + b").")
    return buffer.getvalue()


def overlapping():
    """A thousand entries of one megabyte at the same place."""
    whole = archive(tensor(), storages=[("0", bytes(10**6))])
    start, end = whole.index(b"PK\x01\x02"), whole.rindex(b"PK\x05\x06")
    directory = whole[start:end]
    last = directory[directory.rindex(b"PK\x01\x02") :]
    more = b"".join(last.replace(b"data/0", b"dat%03d" % i)[: len(last)] for i in range(1000))
    size, count = struct.pack("<L", len(directory + more)), struct.pack("<HH", 1003, 1003)
    return whole[:end] + more + whole[end : end + 8] + count + size + whole[end + 16 :]


def old_files():
    """Files of the old format that lie."""
    view = lambda start, length: storage(view=b"(" + text("v") + long(start) + long(length) + b"t")
    whole = tensor(storage(view=b"N"))
    return {
        "old: count too large": old(whole, storages=[("0", 2**40, bytes(16))]),
        "old: count negative": old(whole, storages=[("0", -4, bytes(16))]),
        "old: count differs": old(whole, storages=[("0", 3, bytes(16))]),
        "old: storage missing": old(whole, storages=[]),
        "old: storage twice": old(whole, storages=[("0", 4, bytes(16))] * 2),
        "old: storage unknown": old(whole, keys=["0", "1"]),
        "old: keys that are no list": old(whole, keys={"0": 1}),
        "old: keys that are no text": old(whole, keys=[0]),
        "old: a view outside of its storage": old(tensor(view(2, 4))),
        "old: a view before its storage": old(tensor(view(-1, 4))),
        "old: a tensor outside of its view": old(tensor(view(2, 2))),
        "old: another magic number": pickle.dumps(3, 2) * 5,
        "old: a pickle of an array": pickle.dumps({"w": [1.0, 2.0]}, 5),
        "old: five bombs": (PROTO + b"(" + b"}" * 200_000 + b"t.") * 5,
    }


def safe_files():
    """Files of safetensors that lie."""
    row = lambda dtype="F32", shape=(4,), offsets=(0, 16): {
        "dtype": dtype,
        "shape": list(shape),
        "data_offsets": list(offsets),
    }
    good = bytes(16)
    return {
        "safe: a table longer than the file": (2**20).to_bytes(8, "little") + b"{}",
        "safe: a table of 2**60 bytes": (2**60).to_bytes(8, "little") + b"{}",
        "safe: no JSON": safe(b"{abc"),
        "safe: deep JSON": safe(b'{"a":' * 500_000),
        "safe: long number": safe(b'{"a":' + b"9" * 10**6 + b"}"),
        "safe: no UTF-8": safe(b'{"\xff":1}'),
        "safe: an entry of text": safe({"w": "abc"}, good),
        "safe: unknown dtype": safe({"w": row("F4")}, good),
        "safe: shape too large": safe({"w": row(shape=(5,))}, good),
        "safe: shape overflows": safe({"w": row(shape=(2**62, 4))}, good),
        "safe: negative shape": safe({"w": row(shape=(-2, -2))}, good),
        "safe: bool in the shape": safe({"w": row(shape=(True, 4))}, good),
        "safe: 100 axes": safe({"w": row(shape=(1,) * 99 + (4,))}, good),
        "safe: offsets reversed": safe({"w": row(offsets=(16, 0))}, good),
        "safe: offsets after the end": safe({"w": row(offsets=(16, 32))}, good),
        "safe: negative offset": safe({"w": row(offsets=(-16, 0))}, good),
        "safe: one place twice": safe({"w": row(), "v": row()}, good),
        "safe: a gap": safe({"w": row(), "v": row(offsets=(20, 36))}, bytes(36)),
        "safe: bytes after the end": safe({"w": row()}, bytes(17)),
        "safe: many small tables": safe(b'{"a":[' + b"{}," * 10**6 + b"{}]}"),
    }

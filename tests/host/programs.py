"""programs: what the tests run in the virtual machine: clients that ask, a server to attach, a load."""

# Clients that come one after the other for as long as /tmp/asking is there: each must be greeted, however
# long it waits. Only one whose connection the old daemon had accepted just then may be dropped.
ASK = r"""
touch /tmp/asking
cat >/tmp/ask.py <<'PYTHON'
import os, socket, time
path, greeted, dropped, longest = "/var/lib/polyvol/nbd.sock", 0, 0, 0.0
while os.path.exists("/tmp/asking"):
    begun = time.monotonic()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        try:
            hello = client.recv(8)
        except ConnectionResetError:
            hello = b""
    if hello == b"NBDMAGIC":
        greeted += 1
        longest = max(longest, time.monotonic() - begun)
    else:
        dropped += 1
    time.sleep(0.05)
print(f"greeted {greeted} dropped {dropped} longest {longest:.1f}")
PYTHON
python3 /tmp/ask.py
"""
# A server of one export full of zeros; /tmp/export has its size in bytes and its UUID.
SERVER = r"""
cat >/tmp/server.py <<'PYTHON'
import os, socket, struct, sys, threading
def told():
    size, uuid = open("/tmp/export").read().split()
    return int(size), uuid
def read(peer, length):
    data = peer.recv(length, socket.MSG_WAITALL) if length else b""
    if len(data) < length:
        raise EOFError
    return data
def answer(peer, option, kind, data=b""):
    peer.sendall(struct.pack(">QIII", 0x3e889045565a9, option, kind, len(data)) + data)
def serve(peer):
    try:
        peer.sendall(b"NBDMAGICIHAVEOPT" + struct.pack(">H", 3))
        read(peer, 4)
        while True:
            _, option, length = struct.unpack(">QII", read(peer, 16))
            read(peer, length)
            if option == 2:
                return
            size, uuid = told()
            answer(peer, option, 3, struct.pack(">HQH", 0, size, 0x10d))
            answer(peer, option, 3, struct.pack(">H", 2) + f"volume other ({uuid})".encode())
            answer(peer, option, 1)
            if option == 7:
                break
        while True:
            _, _, command, cookie, _, length = struct.unpack(">IHHQQI", read(peer, 28))
            if command == 2:
                return
            if command == 1:
                read(peer, length)
            data = bytes(length) if command == 0 else b""
            peer.sendall(struct.pack(">IIQ", 0x67446698, 0, cookie) + data)
    except (EOFError, OSError):
        pass
    finally:
        peer.close()
listener = socket.socket(socket.AF_UNIX)
if os.path.exists("/tmp/server.sock"):
    os.unlink("/tmp/server.sock")
listener.bind("/tmp/server.sock")
listener.listen()
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
PYTHON
cat >/run/systemd/system/test-server.service <<'UNIT'
[Service]
ExecStart=/usr/bin/python3 /tmp/server.py
UNIT
systemctl daemon-reload
"""
VERIFIED_FILE = (
    "fio --name=verify --directory={0} --size=6M --bs=4k --rw=randwrite --ioengine=libaio --iodepth=8 "
    "--direct=1 --verify=crc32c --do_verify=1 --verify_fatal=1 --end_fsync=1 --minimal >/dev/null"
)
LOAD = (
    "fio --name=load --directory=/mnt/data --size=8M --bs=16k --rw=randwrite --ioengine=libaio --iodepth=8 "
    "--direct=1 --verify=crc32c --verify_fatal=1 --do_verify=1 --time_based --runtime=12 --minimal"
)

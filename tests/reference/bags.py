"""Bags that this project did not write: made with the PyPI packages `rosbags` and `mcap`, and with sqlite3 as the
recorder of ROS 2 Humble lays out its database. `make setup` installs the packages.

    bags.py make FOLDER     one recording, in every storage and compression, as FOLDER/NAME...; what is in it as
                            FOLDER/messages.json: a list of [topic, type, log time, CRC-32 of the bytes] in the order of time
    bags.py read BAG        the messages of a bag as `rosbags` decodes them, one JSON line each
    bags.py check FILE      reads an MCAP file with `mcap` and `mcap-ros2-support`, checksums on; one JSON line per message

The recording: two JPEG cameras at 30 Hz and joint states at 100 Hz for two seconds, commands, an instruction, and a type
that the project does not know. Log times lie some milliseconds behind the stamps.
"""

import json
import shutil
import sqlite3
import sys
import zlib
from pathlib import Path

import cv2
import mcap.reader
import mcap.writer
import numpy as np
from mcap.writer import CompressionType
from rosbags.highlevel import AnyReader
from rosbags.interfaces import Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

START = 1_700_000_000_000_000_000
JOINTS = [
    f"{key}_joint_{joint}"
    for key, count in [("left_arm", 6), ("right_arm", 6), ("gripper", 2), ("base", 2)]
    for joint in range(1, count + 1)
]
store = get_typestore(Stores.ROS2_HUMBLE)
T = store.types


def stamp(time):
    return T["builtin_interfaces/msg/Time"](sec=time // 10**9, nanosec=time % 10**9)


def header(time, frame=""):
    return T["std_msgs/msg/Header"](stamp=stamp(time), frame_id=frame)


def picture(camera, index):
    y, x = np.mgrid[0:48, 0:64]
    image = np.stack([x * 3 + index, y * 4, np.full_like(x, 40 * camera + index)], axis=-1) % 256
    return image.astype(np.uint8)


def recording():
    """(topic, type, log time, bytes), in the order of log time."""
    messages = []

    def add(topic, kind, time, message):
        messages.append((topic, kind, time, bytes(store.serialize_cdr(message, kind))))

    text = T["std_msgs/msg/String"](data="pick up the red block")
    add("/policy_node/instruction", "std_msgs/msg/String", START, text)
    for index in range(60):
        for camera, name in enumerate(["front", "wrist"]):
            time = START + index * 33_333_333 + camera * 2_000_000
            ok, jpeg = cv2.imencode(".jpg", picture(camera, index))
            assert ok
            image = T["sensor_msgs/msg/CompressedImage"](header(time, name), "rgb8; jpeg compressed bgr8", jpeg.reshape(-1))
            late = 3_000_000 + (index * 7 + camera * 3) % 5 * 1_000_000
            add(f"/{name}/image_raw/compressed", "sensor_msgs/msg/CompressedImage", time + late, image)
    none = np.zeros(0)
    for index in range(200):
        time = START + index * 10_000_000
        position = np.sin(index / 50 + np.arange(len(JOINTS)))
        joints = T["sensor_msgs/msg/JointState"](header(time), JOINTS, position, none, none)
        add("/joint_states", "sensor_msgs/msg/JointState", time + 1_000_000, joints)
        layout = T["std_msgs/msg/MultiArrayLayout"](dim=[], data_offset=0)
        if index % 5 == 0:
            array = T["std_msgs/msg/Float64MultiArray"](layout, position + 0.5)
            add("/commands", "std_msgs/msg/Float64MultiArray", time + 2_000_000, array)
    zeros, vector = np.zeros(36), T["geometry_msgs/msg/Vector3"](0.0, 0.0, 0.5)
    twist = T["geometry_msgs/msg/TwistWithCovariance"](T["geometry_msgs/msg/Twist"](vector, vector), zeros)
    point, turn = T["geometry_msgs/msg/Point"](0.0, 0.0, 0.0), T["geometry_msgs/msg/Quaternion"](0.0, 0.0, 0.0, 1.0)
    pose = T["geometry_msgs/msg/PoseWithCovariance"](T["geometry_msgs/msg/Pose"](point, turn), zeros)
    for index in range(20):
        time = START + index * 100_000_000 + 500
        add("/odom", "nav_msgs/msg/Odometry", time, T["nav_msgs/msg/Odometry"](header(time), "base", pose, twist))
    messages.sort(key=lambda message: message[2])
    return messages


def qos():
    span = QosTime(2147483647, 4294967295)
    automatic = QosLiveliness.AUTOMATIC
    return [Qos(QosHistory.KEEP_LAST, 10, QosReliability.RELIABLE, QosDurability.VOLATILE, span, span, automatic, span, False)]


def with_rosbags(path, messages, version, storage, mode=CompressionMode.NONE):
    writer = Writer(path, version=version, storage_plugin=storage)
    writer.set_compression(mode, CompressionFormat.ZSTD)
    with writer:
        connections = {}
        for topic, kind, time, data in messages:
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, kind, typestore=store, offered_qos_profiles=qos())
            writer.write(connections[topic], time, data)


def with_mcap(path, messages, compression, chunking=True):
    with path.open("wb") as file:
        writer = mcap.writer.Writer(file, chunk_size=20_000, compression=compression, use_chunking=chunking)
        writer.start(profile="ros2", library="test")
        schemas, channels = {}, {}
        for index, (topic, kind, time, data) in enumerate(messages):
            if kind not in schemas:
                definition, _ = store.generate_msgdef(kind, ros_version=2)
                schemas[kind] = writer.register_schema(kind, "ros2msg", definition.encode())
            if topic not in channels:
                offered = "- history: 1\n  depth: 10\n  reliability: 1\n  durability: 2\n"
                metadata = {"offered_qos_profiles": offered}
                channels[topic] = writer.register_channel(topic, "cdr", schemas[kind], metadata)
            writer.add_message(channels[topic], time, data, time - 250, index)
        writer.finish()


def with_humble(path, messages):
    """As rosbag2_storage_sqlite3 0.15 lays it out."""
    database = sqlite3.connect(path)
    database.executescript("""
        CREATE TABLE schema(schema_version INTEGER PRIMARY KEY, ros_distro TEXT NOT NULL);
        CREATE TABLE metadata(id INTEGER PRIMARY KEY, metadata_version INTEGER NOT NULL, metadata TEXT NOT NULL);
        CREATE TABLE topics(id INTEGER PRIMARY KEY, name TEXT NOT NULL, type TEXT NOT NULL,
            serialization_format TEXT NOT NULL, offered_qos_profiles TEXT NOT NULL);
        CREATE TABLE messages(id INTEGER PRIMARY KEY, topic_id INTEGER NOT NULL, timestamp INTEGER NOT NULL, data BLOB NOT NULL);
        CREATE INDEX timestamp_idx ON messages (timestamp ASC);
        INSERT INTO schema(schema_version, ros_distro) VALUES (3, 'humble');
    """)
    topics = {}
    for topic, kind, time, data in messages:
        if topic not in topics:
            topics[topic] = len(topics) + 1
            offered = "- history: 3\n  depth: 0\n  reliability: 1\n  durability: 2\n"
            database.execute("INSERT INTO topics VALUES (?, ?, ?, 'cdr', ?)", (topics[topic], topic, kind, offered))
        database.execute("INSERT INTO messages (topic_id, timestamp, data) VALUES (?, ?, ?)", (topics[topic], time, data))
    database.commit()
    database.close()


def metadata(version, storage, parts, profiles):
    """`metadata.yaml` of a split bag, as the recorders of Humble (5) and Jazzy (9) write it."""
    messages = [message for _, part in parts for message in part]
    topics = {}
    for topic, kind, *_ in messages:
        topics.setdefault((topic, kind), []).append(0)
    lines = [
        "rosbag2_bagfile_information:",
        f"  version: {version}",
        f"  storage_identifier: {storage}",
        "  duration:",
        f"    nanoseconds: {messages[-1][2] - messages[0][2]}",
        "  starting_time:",
        f"    nanoseconds_since_epoch: {messages[0][2]}",
        f"  message_count: {len(messages)}",
        "  topics_with_message_count:",
    ]
    for (topic, kind), seen in topics.items():
        lines += [
            "    - topic_metadata:",
            f"        name: {topic}",
            f"        type: {kind}",
            "        serialization_format: cdr",
            f"        offered_qos_profiles: {profiles}",
            f"      message_count: {len(seen)}",
        ]
    lines += ['  compression_format: ""', '  compression_mode: ""', "  relative_file_paths:"]
    lines += [f"    - {name}" for name, _ in parts]
    lines += ["  files:"]
    for name, part in parts:
        lines += [
            f"    - path: {name}",
            "      starting_time:",
            f"        nanoseconds_since_epoch: {part[0][2]}",
            "      duration:",
            f"        nanoseconds: {part[-1][2] - part[0][2]}",
            f"      message_count: {len(part)}",
        ]
    if version >= 9:
        lines += ["  custom_data: ~", "  ros_distro: jazzy"]
    return "\n".join(lines) + "\n"


def make(folder):
    folder.mkdir(parents=True, exist_ok=True)
    messages = recording()
    listed = [[topic, kind, time, zlib.crc32(data)] for topic, kind, time, data in messages]
    (folder / "messages.json").write_text(json.dumps(listed))
    sqlite, mcap_plugin = StoragePlugin.SQLITE3, StoragePlugin.MCAP

    with_rosbags(folder / "rosbags_sqlite_8", messages, 8, sqlite)
    with_rosbags(folder / "rosbags_sqlite_9", messages, 9, sqlite)
    with_rosbags(folder / "rosbags_sqlite_file_zstd", messages, 9, sqlite, CompressionMode.FILE)
    with_rosbags(folder / "rosbags_sqlite_message_zstd", messages, 8, sqlite, CompressionMode.MESSAGE)
    with_rosbags(folder / "rosbags_mcap_8", messages, 8, mcap_plugin)
    with_rosbags(folder / "rosbags_mcap_9", messages, 9, mcap_plugin)
    with_rosbags(folder / "rosbags_mcap_chunk_zstd", messages, 9, mcap_plugin, CompressionMode.STORAGE)
    with_rosbags(folder / "rosbags_mcap_file_zstd", messages, 8, mcap_plugin, CompressionMode.FILE)
    with_rosbags(folder / "rosbags_mcap_message_zstd", messages, 9, mcap_plugin, CompressionMode.MESSAGE)
    with_rosbags(folder / "rosbags_empty_sqlite", [], 8, sqlite)
    with_rosbags(folder / "rosbags_empty_mcap", [], 9, mcap_plugin)

    for name, compression in [("none", CompressionType.NONE), ("lz4", CompressionType.LZ4), ("zstd", CompressionType.ZSTD)]:
        with_mcap(folder / f"mcap_{name}.mcap", messages, compression)
    with_mcap(folder / "mcap_unchunked.mcap", messages, CompressionType.NONE, chunking=False)

    third = len(messages) // 3
    split = [messages[:third], messages[third : 2 * third], messages[2 * third :]]
    # Neighbouring files of a recorder overlap a little: the last message of one comes after the first of the next.
    split[0].append(split[1].pop(5))
    split[1].sort(key=lambda message: message[2])
    humble = folder / "humble_split"
    humble.mkdir()
    parts = [(f"humble_split_{index}.db3", part) for index, part in enumerate(split)]
    for name, part in parts:
        with_humble(humble / name, part)
    offered = r'"- history: 3\n  depth: 0\n  reliability: 1\n  durability: 2\n  deadline:\n    sec: 9223372036\n    nsec: 854775807\n"'
    (humble / "metadata.yaml").write_text(metadata(5, "sqlite3", parts, offered))

    jazzy = folder / "jazzy_split"
    jazzy.mkdir()
    # More than ten, so that the order of names is not that of numbers.
    step = len(messages) // 12 + 1
    many = [messages[first : first + step] for first in range(0, len(messages), step)]
    parts = [(f"jazzy_split_{index}.mcap", part) for index, part in enumerate(many)]
    for name, part in parts:
        with_mcap(jazzy / name, part, CompressionType.ZSTD)
    offered = "\n" + "\n".join(
        f"          {line}"
        for line in ["- history: keep_last", "  depth: 10", "  reliability: reliable", "  durability: volatile"]
    )
    (jazzy / "metadata.yaml").write_text(metadata(9, "mcap", parts, offered))
    for name in ["humble_split", "jazzy_split", "rosbags_mcap_9", "rosbags_sqlite_message_zstd", "rosbags_mcap_file_zstd"]:
        bare = folder / f"{name}_without_metadata"
        shutil.copytree(folder / name, bare)
        (bare / "metadata.yaml").unlink()


def plain(value):
    """A decoded message as JSON."""
    if isinstance(value, bytes | bytearray | memoryview):
        return zlib.crc32(bytes(value))
    if isinstance(value, np.ndarray):
        return zlib.crc32(value.tobytes()) if value.dtype == np.uint8 else value.tolist()
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    names = getattr(value, "__dataclass_fields__", None) or getattr(value, "__slots__", None)
    if names:
        return {name: plain(getattr(value, name)) for name in names if not name.startswith("_")}
    return value


def read(path):
    # Types outside of ROS come with the bag.
    with AnyReader([path]) as reader:
        for connection, time, data in reader.messages():
            message = plain(reader.deserialize(data, connection.msgtype))
            qos = [[item.reliability.name, item.durability.name, item.depth] for item in connection.ext.offered_qos_profiles]
            print(json.dumps([connection.topic, connection.msgtype, time, qos, message]))


def check(path):
    from mcap_ros2.decoder import DecoderFactory

    with path.open("rb") as file:
        reader = mcap.reader.make_reader(file, validate_crcs=True, decoder_factories=[DecoderFactory()])
        for schema, channel, message, decoded in reader.iter_decoded_messages():
            print(json.dumps([channel.topic, schema.name, message.log_time, message.publish_time, plain(decoded)]))


if __name__ == "__main__":
    {"make": make, "read": read, "check": check}[sys.argv[1]](Path(sys.argv[2]))

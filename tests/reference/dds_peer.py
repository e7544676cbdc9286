"""A peer on the network that shares no code with the package: Eclipse Cyclone DDS through its Python binding.

Reads one JSON command per line on standard input and answers each with one JSON line on standard output:
{"ok": true, ...} or {"ok": false, "error": "..."}. The domain is the first command line argument; all traffic stays on
the loopback interface. Ends with its standard input.

| command | fields | does |
|---|---|---|
| publisher | topic, type, qos | announces a publisher |
| subscriber | topic, type, qos, keep | subscribes, keeping the newest `keep` messages (100) |
| matched | topic, count, timeout | waits until the topic's publisher or subscriber has `count` (1) peers |
| publish | topic, message | publishes once |
| repeat | topic, message, rate, restamp | publishes in the background; with restamp, header.stamp is the time of sending |
| stop | topic | ends `repeat`, answers how many were "sent" |
| take | topic, count, timeout | waits for `count` (1) messages, answers them as "messages", oldest first |
| endpoints | topic, count, timeout | waits for `count` (1) other publishers and subscribers, answers them as "endpoints" |

Topics and types are ROS names (/joint_states, sensor_msgs/Image); qos is sensor_data, reliable or latched. A message is
an object with all its fields, except that bytes are {"base64": "..."}, in commands also {"file": "path"}, and that a
float which is not finite is null.
"""

import base64
import dataclasses
import json
import math
import os
import sys
import threading
import time
import typing

# Found on loopback without multicast: participants announce themselves to the well-known ports of this machine.
os.environ["CYCLONEDDS_URI"] = """
<CycloneDDS><Domain>
  <General>
    <Interfaces><NetworkInterface name="lo"/></Interfaces>
    <AllowMulticast>false</AllowMulticast>
  </General>
  <Discovery>
    <ParticipantIndex>auto</ParticipantIndex>
    <MaxAutoParticipantIndex>50</MaxAutoParticipantIndex>
    <Peers><Peer address="127.0.0.1"/></Peers>
  </Discovery>
</Domain></CycloneDDS>
"""

from cyclonedds.builtin import BuiltinDataReader, BuiltinTopicDcpsPublication, BuiltinTopicDcpsSubscription
from cyclonedds.core import Policy, Qos
from cyclonedds.domain import DomainParticipant
from cyclonedds.idl import IdlStruct
from cyclonedds.idl.types import float32, float64, int32, sequence, uint8, uint32, uint64
from cyclonedds.pub import DataWriter
from cyclonedds.sub import DataReader
from cyclonedds.topic import Topic
from cyclonedds.util import duration


# The messages, written down from their .msg files and named as ROS 2 names them in DDS.


@dataclasses.dataclass
class Time(IdlStruct, typename="builtin_interfaces.msg.dds_.Time_"):
    sec: int32
    nanosec: uint32


@dataclasses.dataclass
class Duration(IdlStruct, typename="builtin_interfaces.msg.dds_.Duration_"):
    sec: int32
    nanosec: uint32


@dataclasses.dataclass
class Header(IdlStruct, typename="std_msgs.msg.dds_.Header_"):
    stamp: Time
    frame_id: str


@dataclasses.dataclass
class String(IdlStruct, typename="std_msgs.msg.dds_.String_"):
    data: str


@dataclasses.dataclass
class Image(IdlStruct, typename="sensor_msgs.msg.dds_.Image_"):
    header: Header
    height: uint32
    width: uint32
    encoding: str
    is_bigendian: uint8
    step: uint32
    data: sequence[uint8]


@dataclasses.dataclass
class CompressedImage(IdlStruct, typename="sensor_msgs.msg.dds_.CompressedImage_"):
    header: Header
    format: str
    data: sequence[uint8]


@dataclasses.dataclass
class JointState(IdlStruct, typename="sensor_msgs.msg.dds_.JointState_"):
    header: Header
    name: sequence[str]
    position: sequence[float64]
    velocity: sequence[float64]
    effort: sequence[float64]


@dataclasses.dataclass
class JointTrajectoryPoint(IdlStruct, typename="trajectory_msgs.msg.dds_.JointTrajectoryPoint_"):
    positions: sequence[float64]
    velocities: sequence[float64]
    accelerations: sequence[float64]
    effort: sequence[float64]
    time_from_start: Duration


@dataclasses.dataclass
class JointTrajectory(IdlStruct, typename="trajectory_msgs.msg.dds_.JointTrajectory_"):
    header: Header
    joint_names: sequence[str]
    points: sequence[JointTrajectoryPoint]


@dataclasses.dataclass
class ActionGroup(IdlStruct, typename="groot_policy.msg.dds_.ActionGroup_"):
    key: str
    names: sequence[str]
    dimension: uint32
    data: sequence[float32]


@dataclasses.dataclass
class StageTiming(IdlStruct, typename="groot_policy.msg.dds_.StageTiming_"):
    stage: str
    milliseconds: float32


@dataclasses.dataclass
class ActionChunk(IdlStruct, typename="groot_policy.msg.dds_.ActionChunk_"):
    header: Header
    observation_stamp: Time
    state_stamp: Time
    sequence: uint64
    noise_seed: uint64
    instruction: str
    embodiment: str
    horizon: uint32
    step_time: Duration
    groups: sequence[ActionGroup]
    timing: sequence[StageTiming]


TYPES = {
    "std_msgs/String": String,
    "sensor_msgs/Image": Image,
    "sensor_msgs/CompressedImage": CompressedImage,
    "sensor_msgs/JointState": JointState,
    "trajectory_msgs/JointTrajectory": JointTrajectory,
    "groot_policy/ActionChunk": ActionChunk,
}


def from_json(kind, value):
    """Makes a value of a field's type from JSON."""
    if isinstance(value, dict) and "base64" in value:
        return base64.b64decode(value["base64"], validate=True)
    if isinstance(value, dict) and "file" in value:
        with open(value["file"], "rb") as file:
            return file.read()
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind, include_extras=True)
        return kind(**{name: from_json(hints[name], value[name]) for name in hints})
    if isinstance(value, list):
        element = typing.get_args(kind)[1].subtype
        return [from_json(element, item) for item in value]
    return math.nan if value is None else value


def to_json(kind, value):
    """Makes JSON from a value of a field's type."""
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind, include_extras=True)
        return {name: to_json(hints[name], getattr(value, name)) for name in hints}
    if isinstance(value, (list, bytes)):
        element = typing.get_args(kind)[1].subtype
        if element is uint8:
            return {"base64": base64.b64encode(bytes(value)).decode()}
        return [to_json(element, item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def qos_of(name, keep):
    rules = {
        "sensor_data": (Policy.Reliability.BestEffort, Policy.Durability.Volatile),
        "reliable": (Policy.Reliability.Reliable(duration(milliseconds=100)), Policy.Durability.Volatile),
        "latched": (Policy.Reliability.Reliable(duration(milliseconds=100)), Policy.Durability.TransientLocal),
    }[name]
    return Qos(*rules, Policy.History.KeepLast(1 if name == "latched" else keep))


def wait_for(what, timeout, poll):
    """Polls until there is an answer."""
    end = time.monotonic() + timeout
    while True:
        answer = poll()
        if answer is not None:
            return answer
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {timeout} s")
        time.sleep(0.005)


class Peer:
    def __init__(self, domain):
        self.participant = DomainParticipant(domain)
        self.kinds = {}
        self.writers = {}
        self.readers = {}
        self.repeating = {}
        # Made before anything is discovered, so that they see all of it.
        self.directories = {
            "publisher": BuiltinDataReader(self.participant, BuiltinTopicDcpsPublication),
            "subscriber": BuiltinDataReader(self.participant, BuiltinTopicDcpsSubscription),
        }

    def topic(self, command, qos):
        kind = TYPES[command["type"]]
        self.kinds[command["topic"]] = kind
        return Topic(self.participant, "rt" + command["topic"], kind, qos=qos)

    def publisher(self, command):
        qos = qos_of(command["qos"], 10)
        self.writers[command["topic"]] = DataWriter(self.participant, self.topic(command, qos), qos=qos)

    def subscriber(self, command):
        qos = qos_of(command["qos"], command.get("keep", 100))
        self.readers[command["topic"]] = DataReader(self.participant, self.topic(command, qos), qos=qos)

    def matched(self, command):
        topic, count = command["topic"], command.get("count", 1)

        def poll():
            if topic in self.writers:
                peers = self.writers[topic].get_matched_subscriptions()
            else:
                peers = self.readers[topic].get_matched_publications()
            return True if len(peers) >= count else None

        wait_for(f"{count} peers on {topic}", command.get("timeout", 20), poll)

    def publish(self, command):
        topic = command["topic"]
        self.writers[topic].write(from_json(self.kinds[topic], command["message"]))

    def repeat(self, command):
        topic = command["topic"]
        writer, message = self.writers[topic], from_json(self.kinds[topic], command["message"])
        period, restamp = 1.0 / command["rate"], command.get("restamp", False)
        ended, sent = threading.Event(), []

        def run():
            due = time.monotonic()
            while not ended.wait(max(0.0, due - time.monotonic())):
                if restamp:
                    now = time.time_ns()
                    message.header.stamp = Time(now // 10**9, now % 10**9)
                writer.write(message)
                sent.append(None)
                due += period

        thread = threading.Thread(target=run, daemon=True)
        self.repeating[topic] = (thread, ended, sent)
        thread.start()

    def stop(self, command):
        thread, ended, sent = self.repeating.pop(command["topic"])
        ended.set()
        thread.join()
        return {"sent": len(sent)}

    def take(self, command):
        topic, count = command["topic"], command.get("count", 1)
        kind, reader, taken = self.kinds[topic], self.readers[topic], []

        def poll():
            samples = reader.take(N=count - len(taken))
            taken.extend(sample for sample in samples if isinstance(sample, kind))
            return taken if len(taken) >= count else None

        wait_for(f"{count} messages on {topic}", command.get("timeout", 20), poll)
        return {"messages": [to_json(kind, message) for message in taken]}

    def endpoints(self, command):
        name, count = "rt" + command["topic"], command.get("count", 1)

        def poll():
            found = [
                {
                    "role": role,
                    "topic": endpoint.topic_name,
                    "type": endpoint.type_name,
                    "reliable": isinstance(endpoint.qos[Policy.Reliability], Policy.Reliability.Reliable),
                    "latched": endpoint.qos[Policy.Durability] == Policy.Durability.TransientLocal,
                }
                for role, directory in self.directories.items()
                for endpoint in directory.read(N=1000)
                if endpoint.topic_name == name and endpoint.participant_key != self.participant.guid
            ]
            return found if len(found) >= count else None

        return {"endpoints": wait_for(f"{count} endpoints of {name}", command.get("timeout", 20), poll)}


COMMANDS = {"publisher", "subscriber", "matched", "publish", "repeat", "stop", "take", "endpoints"}


def main():
    peer = Peer(int(sys.argv[1]))
    for line in sys.stdin:
        try:
            command = json.loads(line)
            if command["command"] not in COMMANDS:
                raise ValueError(f"there is no command {command['command']!r}")
            answer = {"ok": True, **(getattr(peer, command["command"])(command) or {})}
        except Exception as error:  # whatever it is, the test at the other end must hear of it
            answer = {"ok": False, "error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()

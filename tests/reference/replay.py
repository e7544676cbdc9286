"""What `benches/replay.rs` measures, in Python: a bag's cameras read with `rosbags`, decoded with OpenCV, paired with the
nearest joint states, and brought to the network's size with OpenCV and Pillow. Prints the seconds and the versions.

    replay.py BAG
"""

import bisect
import sys
import time
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np
import PIL
from preprocess import stages
from rosbags.highlevel import AnyReader
from rosbags.typesys import Stores, get_typestore

EDGE, CROP_FRACTION = 256, 0.95


def main(path):
    store = get_typestore(Stores.ROS2_HUMBLE)
    frames, stamps, positions, count = {}, [], [], 0
    start = time.perf_counter()
    with AnyReader([path], default_typestore=store) as reader:
        for connection, _, data in reader.messages():
            message = reader.deserialize(data, connection.msgtype)
            stamp = message.header.stamp.sec * 10**9 + message.header.stamp.nanosec
            if connection.topic == "/joint_states":
                stamps.append(stamp)
                positions.append(message.position.astype(np.float32))
                continue
            image = cv2.cvtColor(cv2.imdecode(message.data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
            frames[connection.topic] = (stamp, image)
            if len(frames) == 2:
                anchor = max(stamp for stamp, _ in frames.values())
                after = bisect.bisect_left(stamps, anchor)
                near = range(max(after - 1, 0), min(after + 1, len(stamps)))
                nearest = min(near, key=lambda index: abs(stamps[index] - anchor))
                images = [stages(image, EDGE, CROP_FRACTION)[-1] for _, image in frames.values()]
                batch, state = np.stack(images), positions[nearest]
                assert batch.dtype == np.uint8 and state.size
                frames, count = {}, count + 1
    seconds = time.perf_counter() - start
    print(f"{seconds} rosbags {version('rosbags')}, OpenCV {cv2.__version__}, Pillow {PIL.__version__}, {count} sets")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""The reference's image chain, for comparison: the same steps with OpenCV and Pillow.

`make setup` installs them.

`tests/image_reference.rs` and `benches/preprocess.rs` start this script and talk to it. Its first line of output names
the versions. Then it answers requests, each one line followed by the frame (uint8 RGB, height x width x 3):

    stages WIDTH HEIGHT EDGE CROP_FRACTION                  -> "W1 H1 .. W4 H4", then the bytes of the four images
    time WIDTH HEIGHT EDGE CROP_FRACTION THREADS REPEATS    -> the number of threads, then each run's seconds

THREADS 0 leaves OpenCV's default. Whatever is measured ends with uint8 pixels, before any conversion to float.
"""

import math
import sys
import time

import cv2
import numpy as np
import PIL
from PIL import Image


def shortest_edge(image, edge):
    """Shortest side to `edge`, as albumentations' SmallestMaxSize with INTER_AREA does it."""
    height, width = image.shape[:2]
    scale = edge / float(min(height, width))
    if scale == 1.0:
        return image
    size = (round(width * scale), round(height * scale))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def centre_crop(image, fraction):
    height, width = image.shape[:2]
    crop_height, crop_width = max(1, int(height * fraction)), max(1, int(width * fraction))
    top, left = (height - crop_height) // 2, (width - crop_width) // 2
    return image[top : top + crop_height, left : left + crop_width]


def whole_tokens(image):
    """Both sides to multiples of 28, as the vision processor does it."""
    height, width = image.shape[:2]
    token, fewest, most, longest = 28, 4 * 784, 4096 * 784, 7000
    new = [min(max(token, round(side / token) * token), longest) for side in (height, width)]
    if new[0] * new[1] > most:
        shrink = math.sqrt(new[0] * new[1] / most)
        new = [math.floor(side / shrink / token) * token for side in new]
    elif new[0] * new[1] < fewest:
        grow = math.sqrt(fewest / (height * width))
        new = [math.ceil(side * grow / token) * token for side in (height, width)]
    # No filter is named: the default is bicubic.
    return np.asarray(Image.fromarray(image).resize((new[1], new[0])))


def stages(frame, edge, fraction):
    s1 = shortest_edge(frame, edge)
    s2 = centre_crop(s1, fraction)
    s3 = shortest_edge(s2, edge)
    return s1, s2, s3, whole_tokens(s3)


def main():
    requests, answers = sys.stdin.buffer, sys.stdout.buffer

    def answer(line, *images):
        answers.write(line.encode() + b"\n")
        for image in images:
            answers.write(np.ascontiguousarray(image).tobytes())
        answers.flush()

    answer(f"OpenCV {cv2.__version__}, Pillow {PIL.__version__}")
    while line := requests.readline():
        verb, width, height, edge, fraction, *rest = line.decode().split()
        width, height, edge, fraction = int(width), int(height), int(edge), float(fraction)
        frame = np.frombuffer(requests.read(width * height * 3), np.uint8).reshape(height, width, 3)
        if verb == "stages":
            images = stages(frame, edge, fraction)
            answer(" ".join(f"{image.shape[1]} {image.shape[0]}" for image in images), *images)
        elif verb == "time":
            threads, repeats = int(rest[0]), int(rest[1])
            cv2.setNumThreads(threads if threads else -1)
            seconds = []
            for _ in range(repeats):
                start = time.perf_counter()
                stages(frame, edge, fraction)
                seconds.append(time.perf_counter() - start)
            answer(" ".join(map(repr, [cv2.getNumThreads(), *seconds])))
        else:
            sys.exit(f"unknown request: {line!r}")


if __name__ == "__main__":
    main()

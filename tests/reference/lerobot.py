"""Writes LeRobot datasets with PyArrow and PyAV, and beside them what PyArrow and PyAV read back.

Usage: lerobot.py write FOLDER makes FOLDER/v21, FOLDER/v30, FOLDER/broken and FOLDER/expected/<dataset>/episode_N.<column>, the
latter as raw little-endian numbers: float32 for columns, uint8 RGB for cameras. The last line of its output is the path
of an ffmpeg program. lerobot.py read DATASET FOLDER reads a dataset of version 2.1 whose pictures are in its tables and
writes such files for it.
"""

import io
import json
import pathlib
import sys

import av
import imageio_ffmpeg
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

FPS = 10
LENGTHS = [23, 31, 1, 17]
TASKS = ["pick up the cube", "öffne die Schublade", "wait"]
# Name: size, codec, pixel format, colour space, colour range. 0 leaves it open.
CAMERAS = {
    "h264": ((64, 48), "libx264", "yuv420p", 0, 0),
    "bt709": ((64, 48), "libx264", "yuv420p", 1, 1),
    "bt601": ((64, 48), "libx264", "yuv420p", 6, 1),
    "full": ((64, 48), "libx264", "yuvj420p", 1, 2),
    "fine": ((64, 48), "libx264", "yuv444p", 0, 0),
    "wide": ((98, 34), "libx264", "yuv420p", 1, 1),
    "av1": ((64, 64), "libsvtav1", "yuv420p", 0, 0),
    "hevc": ((64, 64), "libx265", "yuv420p", 0, 0),
}
random = np.random.default_rng(7)


def frames(size, count):
    width, height = size
    y, x = np.mgrid[0:height, 0:width]
    for number in range(count):
        picture = np.stack([x * 3 + number * 5, y * 5, 255 - (x + y) - number], axis=-1) % 256
        picture[8:24, number % 16 : number % 16 + 16] = random.integers(0, 256, (16, 16, 3))
        yield picture.astype(np.uint8)


def write_video(path, camera, episodes):
    """One video of several episodes, one after the other."""
    size, codec, pixels, space, span = CAMERAS[camera]
    path.parent.mkdir(parents=True, exist_ok=True)
    # SVT-AV1 on many threads has crashed once in a great many runs.
    options = {"libx264": {"g": "8", "bf": "3"},
               "libsvtav1": {"g": "8", "preset": "10", "svtav1-params": "lp=1"},
               "libx265": {"x265-params": "keyint=8:log-level=none"}}[codec]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=FPS, options=options)
        stream.width, stream.height, stream.pix_fmt = *size, pixels
        if space:
            stream.codec_context.colorspace = space
        if span:
            stream.codec_context.color_range = span
        number = 0
        for length in episodes:
            for picture in frames(size, length):
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pixels)
                frame.colorspace, frame.color_range = space or 2, span
                frame.pts = number
                number += 1
                container.mux(stream.encode(frame))
        container.mux(stream.encode())


def read_video(path):
    with av.open(str(path)) as container:
        shown = [(float(f.pts * f.time_base), f.to_ndarray(format="rgb24")) for f in container.decode(video=0)]
    assert all(abs(time - number / FPS) < 1e-3 for number, (time, _) in enumerate(shown)), "PyAV shows other times"
    return [picture for _, picture in shown]


def png(picture):
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def episode_columns(episode, first_row, nested):
    length = LENGTHS[episode]
    pictures = list(frames((32, 24), length))
    state = random.standard_normal((length, 7), dtype=np.float32)
    action = random.standard_normal((length, 7))
    columns = {
        "observation.images.stored": pa.array([{"bytes": png(p), "path": f"{i}.png"} for i, p in enumerate(pictures)]),
        "observation.state": pa.FixedSizeListArray.from_arrays(state.ravel(), 7) if nested else pa.array(list(state)),
        "action": pa.array(list(action), pa.list_(pa.float64())),
        "observation.gripper": pa.array(random.standard_normal(length, dtype=np.float32)),
        "timestamp": pa.array((np.arange(length) / FPS).astype(np.float32)),
        "frame_index": pa.array(np.arange(length)),
        "episode_index": pa.array(np.full(length, episode)),
        "index": pa.array(np.arange(length) + first_row),
        "task_index": pa.array(np.arange(length) // 6 % len(TASKS)),
        "annotation.human.action.task_description": pa.array((np.arange(length) + 1) % len(TASKS)),
    }
    return pa.table(columns)


def expect(folder, episode, table, videos):
    folder.mkdir(parents=True, exist_ok=True)
    for column in ["observation.state", "action", "observation.gripper", "timestamp"]:
        values = np.array(table[column].to_pylist()).astype("<f4")
        values.tofile(folder / f"episode_{episode}.{column}")
    for column in ["task_index", "annotation.human.action.task_description"]:
        texts = [TASKS[index] for index in table[column].to_pylist()]
        (folder / f"episode_{episode}.{column}").write_text("\n".join(texts), encoding="utf-8")
    stored = [np.array(Image.open(io.BytesIO(cell["bytes"]))) for cell in table["observation.images.stored"].to_pylist()]
    for camera, pictures in {**videos, "stored": stored}.items():
        np.stack(pictures).tofile(folder / f"episode_{episode}.{camera}")


def info(version, paths):
    def number(kind, shape):
        return {"dtype": kind, "shape": shape, "names": None}

    features = {f"observation.images.{name}": {"dtype": "video", "shape": [size[1], size[0], 3],
                "names": ["height", "width", "channels"]} for name, (size, *_) in CAMERAS.items()}
    features |= {
        "observation.images.stored": {"dtype": "image", "shape": [24, 32, 3], "names": ["height", "width", "channels"]},
        "observation.state": number("float32", [7]),
        "action": number("float64", [7]),
        "observation.gripper": number("float32", [1]),
        "timestamp": number("float32", [1]),
        "frame_index": number("int64", [1]),
        "episode_index": number("int64", [1]),
        "index": number("int64", [1]),
        "task_index": number("int64", [1]),
        "annotation.human.action.task_description": number("int64", [1]),
    }
    return {"codebase_version": version, "robot_type": "test", "total_episodes": len(LENGTHS),
            "total_frames": sum(LENGTHS), "total_tasks": len(TASKS), "chunks_size": 2, "fps": FPS,
            "splits": {"train": f"0:{len(LENGTHS)}"}, **paths, "features": features}


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=4))


def write_lines(path, values):
    path.write_text("".join(json.dumps(value) + "\n" for value in values))


def modality():
    return {
        "state": {"arm": {"start": 0, "end": 5}, "hand": {"start": 5, "end": 7},
                  "gripper": {"start": 0, "end": 1, "original_key": "observation.gripper"}},
        "action": {"arm": {"start": 0, "end": 5}, "hand": {"start": 5, "end": 7}},
        "video": {name: {"original_key": f"observation.images.{name}"} for name in [*CAMERAS, "stored"]},
        "annotation": {"human.task_description": {"original_key": "task_index"}, "human.action.task_description": {}},
    }


def write_v21(root, expected):
    data, video = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet", \
        "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
    write_json(root / "meta/info.json", info("v2.1", {"data_path": data, "video_path": video}))
    write_json(root / "meta/modality.json", modality())
    write_lines(root / "meta/tasks.jsonl", [{"task_index": i, "task": t} for i, t in enumerate(TASKS)])
    write_lines(root / "meta/episodes.jsonl",
                [{"episode_index": i, "tasks": TASKS, "length": n} for i, n in enumerate(LENGTHS)])
    for episode, length in enumerate(LENGTHS):
        place = {"episode_chunk": episode // 2, "episode_index": episode}
        path = root / data.format(**place)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(episode_columns(episode, sum(LENGTHS[:episode]), False), path, row_group_size=9)
        videos = {}
        for camera in CAMERAS:
            movie = root / video.format(video_key=f"observation.images.{camera}", **place)
            write_video(movie, camera, [length])
            videos[camera] = read_video(movie)
        expect(expected, episode, pq.read_table(path), videos)


def write_v30(root, expected):
    data, video = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet", \
        "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
    write_json(root / "meta/info.json", info("v3.0", {"data_path": data, "video_path": video}))
    write_json(root / "meta/modality.json", modality())
    # As pandas writes a frame whose index is the text: the index is a column, named or not.
    pq.write_table(pa.table({"task_index": range(len(TASKS)), "__index_level_0__": TASKS}), root / "meta/tasks.parquet")
    rows, places = [], {}
    for file, episodes in enumerate([[0, 1, 2], [3]]):
        tables = [episode_columns(e, sum(LENGTHS[:e]), True) for e in episodes]
        path = root / data.format(chunk_index=0, file_index=file)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.concat_tables(tables), path, row_group_size=11, compression="zstd", data_page_version="2.0",
                       data_page_size=200)
        read = pq.read_table(path)
        videos = {}
        for camera in CAMERAS:
            movie = root / video.format(video_key=f"observation.images.{camera}", chunk_index=0, file_index=file)
            write_video(movie, camera, [LENGTHS[e] for e in episodes])
            videos[camera] = read_video(movie)
        start = 0
        for episode in episodes:
            end = start + LENGTHS[episode]
            expect(expected, episode, read.slice(start, end - start), {c: v[start:end] for c, v in videos.items()})
            row = {"episode_index": episode, "tasks": TASKS[:1], "length": LENGTHS[episode],
                   "data/chunk_index": 0, "data/file_index": file,
                   "dataset_from_index": sum(LENGTHS[:episode]), "dataset_to_index": sum(LENGTHS[: episode + 1]),
                   "stats/action/mean": [0.0] * 7}
            for camera in CAMERAS:
                key = f"videos/observation.images.{camera}"
                row |= {f"{key}/chunk_index": 0, f"{key}/file_index": file, f"{key}/from_timestamp": start / FPS,
                        f"{key}/to_timestamp": end / FPS}
            rows.append(row)
            start = end
    folder = root / "meta/episodes/chunk-000"
    folder.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows[:2]), folder / "file-000.parquet")
    pq.write_table(pa.Table.from_pylist(rows[2:]), folder / "file-001.parquet")


def read(root, folder):
    info = json.loads((root / "meta/info.json").read_text())
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.loads(line) for line in (root / "meta/episodes.jsonl").read_text().splitlines()]
    assert len(lines) == info["total_episodes"] and sum(line["length"] for line in lines) == info["total_frames"]
    for line in lines:
        episode = line["episode_index"]
        place = {"episode_chunk": episode // info["chunks_size"], "episode_index": episode}
        table = pq.read_table(root / info["data_path"].format(**place))
        assert set(table.column_names) == set(info["features"]) and len(table) == line["length"]
        for column, feature in info["features"].items():
            cells = table[column].to_pylist()
            path = folder / f"episode_{episode}.{column}"
            if feature["dtype"] == "image":
                pictures = np.stack([np.array(Image.open(io.BytesIO(cell["bytes"]))) for cell in cells])
                assert list(pictures.shape[1:]) == feature["shape"]
                pictures.tofile(path)
            else:
                assert str(np.array(cells[0]).dtype).startswith(feature["dtype"][:3])
                np.array(cells).astype("<f4").tofile(path)


def write_broken(folder):
    """Tables of episode 1 with one fault each."""
    folder.mkdir()
    table = episode_columns(1, LENGTHS[0], False)

    def write(name, column, cells, kind):
        index = table.column_names.index(column)
        pq.write_table(table.set_column(index, column, pa.array(cells, kind)), folder / f"{name}.parquet")

    for name, value in [("nan", float("nan")), ("infinite", float("inf")), ("null", None)]:
        cells = table["observation.state"].to_pylist()
        cells[5][2] = value
        write(name, "observation.state", cells, pa.list_(pa.float32()))
    cells = table["action"].to_pylist()
    write("absent", "action", cells[:4] + [None] + cells[5:], pa.list_(pa.float64()))
    write("short", "action", cells[:4] + [cells[4][:6]] + cells[5:], pa.list_(pa.float64()))
    write("nested", "action", [[cell] for cell in cells], pa.list_(pa.list_(pa.float64())))
    write("text", "action", [str(cell) for cell in cells], pa.string())
    write("task", "task_index", [-1] * LENGTHS[1], pa.int64())
    pictures = table["observation.images.stored"].to_pylist()
    kind = table["observation.images.stored"].type
    write("gif", "observation.images.stored", [{**pictures[0], "bytes": b"GIF89a"}] + pictures[1:], kind)
    write("outside", "observation.images.stored", [{**p, "bytes": None} for p in pictures], kind)
    pq.write_table(table.slice(0, 0), folder / "empty.parquet")


def main():
    if sys.argv[1] == "read":
        return read(pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3]))
    root = pathlib.Path(sys.argv[2])
    write_v21(root / "v21", root / "expected/v21")
    write_v30(root / "v30", root / "expected/v30")
    write_broken(root / "broken")
    print(imageio_ffmpeg.get_ffmpeg_exe())


main()

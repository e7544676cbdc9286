"""Replays a recording through the policy: how accurate, how fast?

    ros2 launch groot_policy benchmark_replay.launch.py params_file:=/path/to/robot.yaml bag:=/path/to/bag out:=report

The parameter file is the node's own; options of the replay stand in it below `replay` or are given here.
"""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

# Arguments that are options of the program, too; empty: as the parameter file or the program says.
OPTIONS = {
    "bag": "rosbag2 folder, .mcap or .db3 file",
    "dataset": "Folder of a LeRobot dataset, instead of a bag",
    "episodes": "Episodes of the dataset, e.g. 0,1,2",
    "checkpoint": "Checkpoint directory; wins over the parameter file",
    "modes": "What runs the network, the reference first, e.g. torch,torch-bf16",
    "truth": "Recorded actions of a bag: joint-states, none, or a topic of commands",
    "out": "Folder for report.html, run.json and the tables as CSV",
    "fail_if": "Conditions under which the exit code is 1, e.g. dit_cosine<0.9999",
}

ARGUMENTS = [
    DeclareLaunchArgument("params_file", description="Parameter file of the node; see config/policy.yaml"),
    DeclareLaunchArgument("namespace", default_value="", description="Namespace of the node that is replayed"),
    DeclareLaunchArgument("log_level", default_value="warn", description="debug, info, warn or error"),
    *(DeclareLaunchArgument(name, default_value="", description=text) for name, text in OPTIONS.items()),
]


def start(context):
    def value(name):
        return LaunchConfiguration(name).perform(context)

    options = []
    for name in OPTIONS:
        if value(name):
            options += ["--" + name.replace("_", "-"), value(name)]
    return [
        Node(
            package="groot_policy",
            executable="benchmark_replay",
            # The node whose parameters and topics are meant; the replay itself joins no network.
            name="policy_node",
            namespace=value("namespace"),
            parameters=[value("params_file")],
            arguments=[*options, "--ros-args", "--log-level", value("log_level")],
            output="screen",
            emulate_tty=True,
        )
    ]


def generate_launch_description():
    return LaunchDescription([*ARGUMENTS, OpaqueFunction(function=start)])

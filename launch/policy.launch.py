"""Runs a policy.

    ros2 launch groot_policy policy.launch.py params_file:=/path/to/robot.yaml

Topics are relative to the namespace; other names are given by remapping, from a launch file that includes this one
(`SetRemap` of launch_ros in the same group) or in the parameter file, where every topic is a parameter.
"""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

ARGUMENTS = [
    DeclareLaunchArgument("params_file", description="Parameter file of the node; see config/policy.yaml"),
    DeclareLaunchArgument("namespace", default_value="", description="Namespace of the node and of its relative topics"),
    DeclareLaunchArgument(
        "use_sim_time", default_value="", description="true: time is what /clock says. Empty: as the parameter file says"
    ),
    DeclareLaunchArgument("log_level", default_value="info", description="debug, info, warn or error"),
    DeclareLaunchArgument(
        "dry_run",
        default_value="",
        description="false: command the robot; true: publish under ~/dry_run only. Empty: as the parameter file says",
    ),
]


def start(context):
    def value(name):
        return LaunchConfiguration(name).perform(context)

    # What is not given here must not override the file.
    given = {}
    for name in ("use_sim_time", "dry_run"):
        text = value(name).strip().lower()
        if text not in ("", "true", "false"):
            raise RuntimeError(f"{name}:={text}: expected true or false")
        if text:
            given[name] = text == "true"
    return [
        Node(
            package="groot_policy",
            executable="policy_node",
            name="policy_node",
            namespace=value("namespace"),
            parameters=[value("params_file"), given] if given else [value("params_file")],
            arguments=["--ros-args", "--log-level", value("log_level")],
            output="screen",
            emulate_tty=True,
        )
    ]


def generate_launch_description():
    return LaunchDescription([*ARGUMENTS, OpaqueFunction(function=start)])

"""A robot that exists only as pictures and joint angles, and a policy that moves it.

    ros2 launch groot_policy demo.launch.py params_file:=/path/to/groot_policy/config/demo.yaml

The demo's checkpoint is that of the tests and not installed: take config/demo.yaml from the sources. The robot's topics are
relative to the namespace; where there is one, those of the parameter file must be so, too.
"""

import os

from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

# Handed on to policy.launch.py, where they are explained.
HANDED_ON = {"params_file": None, "namespace": "", "use_sim_time": "", "log_level": "info", "dry_run": ""}


def generate_launch_description():
    policy = os.path.join(get_package_share_directory("groot_policy"), "launch", "policy.launch.py")
    return LaunchDescription(
        [
            *(DeclareLaunchArgument(name, default_value=default) for name, default in HANDED_ON.items()),
            DeclareLaunchArgument("camera_rate", default_value="30", description="Pictures per second of each camera"),
            Node(
                package="groot_policy",
                executable="synthetic_robot",
                namespace=LaunchConfiguration("namespace"),
                arguments=["--rate", LaunchConfiguration("camera_rate")],
                output="screen",
            ),
            IncludeLaunchDescription(
                PythonLaunchDescriptionSource(policy),
                launch_arguments=[(name, LaunchConfiguration(name)) for name in HANDED_ON],
            ),
        ]
    )

"""A robot that exists only as pictures and joint angles, and a policy that moves it.

    ros2 launch groot_policy demo.launch.py params_file:=/path/to/groot_policy/config/demo.yaml

The demo's checkpoint is that of the tests and not installed: take config/demo.yaml from the sources.
"""

import os

from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node


def generate_launch_description():
    policy = os.path.join(get_package_share_directory("groot_policy"), "launch", "policy.launch.py")
    return LaunchDescription(
        [
            DeclareLaunchArgument("namespace", default_value="", description="Namespace of both nodes"),
            DeclareLaunchArgument("camera_rate", default_value="30", description="Pictures per second of each camera"),
            # The robot reads its own options, and its namespace from the option that all ROS 2 nodes have.
            Node(
                package="groot_policy",
                executable="synthetic_robot",
                namespace=LaunchConfiguration("namespace"),
                arguments=["--rate", LaunchConfiguration("camera_rate")],
                output="screen",
            ),
            # Its arguments are ours as well.
            IncludeLaunchDescription(PythonLaunchDescriptionSource(policy)),
        ]
    )

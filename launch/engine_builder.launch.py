"""Builds the TensorRT engine of a checkpoint on this machine's GPU, and compares it with libtorch.

    ros2 launch groot_policy engine_builder.launch.py checkpoint:=/path/to/checkpoint out:=/path/to/engines precision:=fp16

A parameter file may hold the options below `engine`, too.
"""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

# Arguments that are options of the program, too; empty: as the parameter file or the program says.
OPTIONS = {
    "checkpoint": "Checkpoint directory",
    "embodiment": "Embodiment tag of the checkpoint",
    "precision": "fp32, fp16, bf16 or int8",
    "out": "Folder for engines",
    "text_tokens": "Tokens of a prompt that are not of images: MIN,OPT,MAX",
    "image_tokens": "Image tokens of a prompt: MIN,OPT,MAX",
    "optimisation_level": "0 (quick) to 5",
    "calibration": "Inputs that INT8 is calibrated on",
}

ARGUMENTS = [
    DeclareLaunchArgument("params_file", default_value="", description="Parameter file with options below `engine`"),
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
            executable="engine_builder",
            name="engine_builder",
            parameters=[value("params_file")] if value("params_file") else [],
            arguments=[*options, "--ros-args", "--log-level", value("log_level")],
            output="screen",
            emulate_tty=True,
        )
    ]


def generate_launch_description():
    return LaunchDescription([*ARGUMENTS, OpaqueFunction(function=start)])

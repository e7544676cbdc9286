#!/usr/bin/env bash
# Runs the synthetic robot and the policy node side by side over DDS; stops both together.
# Usage: launch/demo.sh [SECONDS]; 0 or nothing runs until Ctrl-C.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-0}
bin=target/release

cat <<'TEXT'
 Two processes: a synthetic robot (two cameras, 16 joints) and policy_node, talking over real DDS.
 The tiny checkpoint has the true architecture but RANDOM weights: the motions mean nothing.
 The trajectories are on the topic /policy_node/joint_trajectory, for ROS 2 nodes too. Ctrl-C ends the demo.
TEXT

$bin/synthetic_robot >target/synthetic_robot.log 2>&1 &
robot=$!
trap 'kill $robot 2>/dev/null || true; wait $robot 2>/dev/null || true' EXIT
if [ "$seconds" -gt 0 ]; then
    timeout --signal=INT "$seconds" $bin/policy_node --params-file config/demo.yaml || [ $? -eq 124 ]
else
    $bin/policy_node --params-file config/demo.yaml
fi

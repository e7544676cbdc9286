//! Subscriptions: each topic is drained by a task of its own.

use std::sync::Arc;

use tokio::task::JoinSet;

use super::{NodeError, Shared, lock};
use crate::{
    node::{
        assembly::Input,
        config::{ImageTransport, NodeConfig},
    },
    ros::{
        Stamp,
        image::CameraMessage,
        msg::{self, CompressedImage, Image, JointState, Message},
        srv::{Parameter, ParameterValue, parameter_type},
        transport::{Qos, Received, Subscription},
    },
};

/// Unread joint messages that are kept: a second's worth at 100 Hz.
const JOINT_MESSAGES: usize = 100;

/// A latched reader hears only latched writers, a plain one misses what was said before it came: so both. What is said
/// twice is heard twice, which changes nothing here.
const COMMANDS: [Qos; 2] = [Qos::latched(), Qos::reliable(10)];

/// Subscribes all inputs.
///
/// # Errors
/// A refusal of the transport.
pub(super) fn subscribe(
    config: &NodeConfig,
    shared: &Arc<Shared>,
    tasks: &mut JoinSet<()>,
) -> Result<(), NodeError> {
    let node = &shared.node;
    for (index, (key, camera)) in config.cameras.iter().enumerate() {
        let topic = camera.subscribed_topic();
        let input = Input::Camera(key.clone());
        let key = key.clone();
        match camera.transport {
            ImageTransport::Raw => {
                let images = node.subscribe::<Image>(&topic, Qos::camera(), 1)?;
                tracing::info!("{input}: {} (sensor_msgs/Image)", images.topic());
                drain(images, Some(input), shared, tasks, move |shared, received| {
                    take_image(shared, (index, &key), received, CameraMessage::Raw);
                });
            }
            ImageTransport::Compressed => {
                let images = node.subscribe::<CompressedImage>(&topic, Qos::camera(), 1)?;
                tracing::info!("{input}: {} (sensor_msgs/CompressedImage)", images.topic());
                drain(images, Some(input), shared, tasks, move |shared, received| {
                    take_image(shared, (index, &key), received, CameraMessage::Compressed);
                });
            }
        }
    }
    let joints =
        node.subscribe::<JointState>(&config.joint_states_topic, Qos::sensor_data(), JOINT_MESSAGES)?;
    tracing::info!("joint states: {}", joints.topic());
    let mut complaint: Option<String> = None;
    drain(joints, Some(Input::JointStates), shared, tasks, move |shared, received| {
        let message = received.message;
        let taken = lock(&shared.assembler).on_joints(Stamp::from(&received.time), &message);
        match taken {
            Ok(_) => {
                complaint = None;
                *lock(&shared.measured) = Some(message);
            }
            Err(error) => {
                let text = error.to_string();
                if complaint.as_ref() != Some(&text) {
                    tracing::warn!("joint states: {text}");
                    complaint = Some(text);
                }
            }
        }
    });
    for qos in COMMANDS {
        let instructions = node.subscribe::<msg::String>(&config.instruction_topic, qos, 1)?;
        drain(instructions, None, shared, tasks, |shared, received| {
            take_instruction(shared, received.message.data)
        });
        let stops = node.subscribe::<msg::Bool>(&config.safety.estop_topic, qos, 100)?;
        drain(stops, None, shared, tasks, |shared, received| {
            let pressed = received.message.data;
            shared.steer(|control| {
                let latched = control.gate().estop();
                control.on_estop(pressed);
                if control.gate().estop() && !latched {
                    tracing::error!("e-stop: latched until ~/reset");
                }
            });
        });
        if let Some(topic) = &config.safety.robot_description_topic {
            let descriptions = node.subscribe::<msg::String>(topic, qos, 1)?;
            let mut last = std::string::String::new();
            drain(descriptions, None, shared, tasks, move |shared, received| {
                let xml = received.message.data;
                if xml != last {
                    // Some milliseconds for a large robot.
                    tokio::task::block_in_place(|| take_description(shared, &xml));
                    last = xml;
                }
            });
        }
    }
    Ok(())
}

fn drain<M: Message>(
    subscription: Subscription<M>,
    input: Option<Input>,
    shared: &Arc<Shared>,
    tasks: &mut JoinSet<()>,
    mut take: impl FnMut(&Shared, Received<M>) + Send + 'static,
) {
    let subscription = Arc::new(subscription);
    if let Some(input) = input {
        let counted = subscription.clone();
        lock(&shared.transport).push((input, Box::new(move || counted.counters())));
    }
    let shared = shared.clone();
    tasks.spawn(async move {
        while let Some(received) = subscription.recv().await {
            take(&shared, received);
        }
    });
}

fn take_image<M>(
    shared: &Shared,
    (index, camera): (usize, &str),
    received: Received<M>,
    of: impl FnOnce(M) -> CameraMessage,
) {
    let stamp = Stamp::from(&received.time);
    if let Err(error) = lock(&shared.assembler).on_image(camera, stamp, of(received.message)) {
        tracing::warn!("{error}");
    }
    shared.arrivals.note(index, received.at);
}

/// The instruction is a parameter, whoever sets it: what was said last is in force, and everybody can read it.
fn take_instruction(shared: &Shared, text: std::string::String) {
    if shared.store.config().instruction == text {
        return;
    }
    let value =
        ParameterValue { r#type: parameter_type::STRING, string_value: text, ..ParameterValue::default() };
    // A refusal has been logged with its reason.
    shared.parameters.set(&[Parameter { name: "instruction".to_owned(), value }]);
}

fn take_description(shared: &Shared, xml: &str) {
    match lock(&shared.control).set_urdf(xml) {
        Ok(notes) => {
            tracing::info!("the joint limits of the robot description apply");
            notes.iter().for_each(|note| tracing::warn!("robot description: {note}"));
        }
        Err(error) => tracing::error!("robot description: {error}; the limits in force stay"),
    }
}

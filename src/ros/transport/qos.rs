//! Quality of service: the three profiles that robots use.

/// Delivery rules of a topic, on the side of one publisher or subscriber.
///
/// A reliable or latched subscriber hears only publishers that offer as much; a best-effort one hears all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Qos {
    /// Whether lost messages are sent again.
    pub reliable: bool,
    /// Whether whoever joins late still gets the last messages ("transient local").
    pub latched: bool,
    /// How many messages are kept for that.
    pub depth: usize,
    /// Most received messages that the middleware may hold back before ours takes them; `None` leaves it its own
    /// limit (64), which for cameras means tens of megabytes, and seconds of delay once the machine is busy.
    pub max_samples: Option<usize>,
}

impl Qos {
    /// For sensors: newest data matters, lost data does not. The profile of `rmw_qos_profile_sensor_data`.
    pub const fn sensor_data() -> Self {
        Self { reliable: false, latched: false, depth: 5, max_samples: None }
    }

    /// For commands and results.
    pub const fn reliable(depth: usize) -> Self {
        Self { reliable: true, latched: false, depth, max_samples: None }
    }

    /// For what holds until it is said anew: status, instruction.
    pub const fn latched() -> Self {
        Self { reliable: true, latched: true, depth: 1, max_samples: None }
    }

    /// For `/parameter_events`, as in `rmw_qos_profile_parameter_events`.
    pub const fn parameter_events() -> Self {
        Self::reliable(1000)
    }

    /// For `/rosout`: whoever joins late still gets the last lines.
    pub const fn rosout() -> Self {
        Self { depth: 1000, ..Self::latched() }
    }

    /// For `/clock`: only the newest time counts.
    pub const fn clock() -> Self {
        Self { depth: 1, ..Self::sensor_data() }
    }

    /// Sensor data too large to be piled up: the newest image, and the one on its way.
    pub const fn camera() -> Self {
        Self { depth: 1, max_samples: Some(2), ..Self::sensor_data() }
    }
}

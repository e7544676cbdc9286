//! The services that the package offers, and the messages that belong to them: parameters, lifecycle, triggers, and the
//! system topics `/clock`, `/parameter_events` and `/rosout`.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::DeserializeOwned};

use super::msg::{ByteBuf, Message, Time, messages};

/// A ROS 2 service type: its package, its name, and the two messages of a call.
pub trait Service: Send + Sync + 'static {
    /// The package that defines the service.
    const PACKAGE: &'static str;
    /// The service's name inside the package.
    const NAME: &'static str;
    /// What a client asks.
    type Request: Serialize + DeserializeOwned + Clone + Send + Sync + 'static;
    /// What the server answers.
    type Response: Serialize + DeserializeOwned + Clone + Send + Sync + 'static;
}

/// A message without fields. ROS 2 gives such a structure one byte on the wire, since IDL knows no empty ones; a peer
/// that leaves the byte out is understood all the same.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Empty;

impl Serialize for Empty {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u8(0)
    }
}

impl<'de> Deserialize<'de> for Empty {
    fn deserialize<D: Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        Ok(Self)
    }
}

macro_rules! services {
    ($($package:literal { $($(#[$doc:meta])* $name:ident : $request:ty => $response:ty),* $(,)? })*) => {$($(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name {}
        impl Service for $name {
            const PACKAGE: &'static str = $package;
            const NAME: &'static str = stringify!($name);
            type Request = $request;
            type Response = $response;
        }
    )*)*};
}

services! {
    "std_srvs" {
        /// Do it, and say whether it worked.
        Trigger: Empty => TriggerResponse,
    }
    "rcl_interfaces" {
        /// Values of parameters.
        GetParameters: Names => GetParametersResponse,
        /// Kinds of parameters.
        GetParameterTypes: Names => GetParameterTypesResponse,
        /// Names of parameters.
        ListParameters: ListParametersRequest => ListParametersResponse,
        /// What parameters mean and which values they take.
        DescribeParameters: Names => DescribeParametersResponse,
        /// Sets parameters one by one.
        SetParameters: SetParametersRequest => SetParametersResponse,
        /// Sets all parameters or none.
        SetParametersAtomically: SetParametersRequest => SetParametersAtomicallyResponse,
    }
    "lifecycle_msgs" {
        /// Asks for a transition.
        ChangeState: ChangeStateRequest => ChangeStateResponse,
        /// The state a node is in.
        GetState: Empty => GetStateResponse,
        /// The states a node knows.
        GetAvailableStates: Empty => GetAvailableStatesResponse,
        /// The transitions that are possible now.
        GetAvailableTransitions: Empty => GetAvailableTransitionsResponse,
    }
}

/// The kinds of parameter values, as `rcl_interfaces/ParameterType` numbers them.
pub mod parameter_type {
    /// No value.
    pub const NOT_SET: u8 = 0;
    /// `bool_value`.
    pub const BOOL: u8 = 1;
    /// `integer_value`.
    pub const INTEGER: u8 = 2;
    /// `double_value`.
    pub const DOUBLE: u8 = 3;
    /// `string_value`.
    pub const STRING: u8 = 4;
    /// `byte_array_value`.
    pub const BYTE_ARRAY: u8 = 5;
    /// `bool_array_value`.
    pub const BOOL_ARRAY: u8 = 6;
    /// `integer_array_value`.
    pub const INTEGER_ARRAY: u8 = 7;
    /// `double_array_value`.
    pub const DOUBLE_ARRAY: u8 = 8;
    /// `string_array_value`.
    pub const STRING_ARRAY: u8 = 9;
}

messages! {
    "rcl_interfaces" {
        /// The value of a parameter: only the field that `type` names counts.
        ParameterValue {
            /// One of [`parameter_type`].
            r#type: u8,
            /// For `BOOL`.
            bool_value: bool,
            /// For `INTEGER`.
            integer_value: i64,
            /// For `DOUBLE`.
            double_value: f64,
            /// For `STRING`.
            string_value: String,
            /// For `BYTE_ARRAY`.
            byte_array_value: ByteBuf,
            /// For `BOOL_ARRAY`.
            bool_array_value: Vec<bool>,
            /// For `INTEGER_ARRAY`.
            integer_array_value: Vec<i64>,
            /// For `DOUBLE_ARRAY`.
            double_array_value: Vec<f64>,
            /// For `STRING_ARRAY`.
            string_array_value: Vec<String>,
        }
        /// A named value.
        Parameter {
            /// Dotted name.
            name: String,
            /// The value.
            value: ParameterValue,
        }
        /// The numbers that a parameter takes.
        FloatingPointRange {
            /// The lowest.
            from_value: f64,
            /// The highest.
            to_value: f64,
            /// Distance between allowed values; 0 allows all.
            step: f64,
        }
        /// The integers that a parameter takes.
        IntegerRange {
            /// The lowest.
            from_value: i64,
            /// The highest.
            to_value: i64,
            /// Distance between allowed values; 0 allows all.
            step: u64,
        }
        /// What a parameter means and which values it takes.
        ParameterDescriptor {
            /// Dotted name.
            name: String,
            /// One of [`parameter_type`].
            r#type: u8,
            /// What it does.
            description: String,
            /// What its value must fulfil, in words.
            additional_constraints: String,
            /// Whether it keeps its first value.
            read_only: bool,
            /// Whether its kind may change.
            dynamic_typing: bool,
            /// At most one range, for a number.
            floating_point_range: Vec<FloatingPointRange>,
            /// At most one range, for an integer.
            integer_range: Vec<IntegerRange>,
        }
        /// What became of an attempt to set parameters.
        SetParametersResult {
            /// Whether they are set.
            successful: bool,
            /// Why not.
            reason: String,
        }
        /// Names of parameters, and the groups that they stand in.
        ListParametersResult {
            /// Dotted names.
            names: Vec<String>,
            /// The names without their last part, each once.
            prefixes: Vec<String>,
        }
        /// Tells everybody that parameters of a node have changed.
        ParameterEvent {
            /// When.
            stamp: Time,
            /// The node's fully qualified name.
            node: String,
            /// Parameters that were not there before.
            new_parameters: Vec<Parameter>,
            /// Parameters that have another value now.
            changed_parameters: Vec<Parameter>,
            /// Parameters that are gone.
            deleted_parameters: Vec<Parameter>,
        }
    }
    "lifecycle_msgs" {
        /// A state of a node.
        State {
            /// Number of the state.
            id: u8,
            /// Its name.
            label: String,
        }
        /// A way from one state to another.
        Transition {
            /// Number of the transition.
            id: u8,
            /// Its name.
            label: String,
        }
        /// A transition with both its ends.
        TransitionDescription {
            /// The transition.
            transition: Transition,
            /// Where it begins.
            start_state: State,
            /// Where it leads.
            goal_state: State,
        }
        /// Tells everybody that a node went from one state to another.
        TransitionEvent {
            /// When, in nanoseconds.
            timestamp: u64,
            /// The transition.
            transition: Transition,
            /// Where it began.
            start_state: State,
            /// Where it led.
            goal_state: State,
        }
    }
}

/// The two halves of a service call: structs like messages, but without a name of their own on the network.
macro_rules! bodies {
    ($($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident : $kind:ty),* $(,)? })*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
        pub struct $name { $($(#[$field_doc])* pub $field: $kind,)* }
    )*};
}

bodies! {
    /// Answer to a trigger.
    TriggerResponse {
        /// Whether it worked.
        success: bool,
        /// Why or why not, for people.
        message: String,
    }
    /// Request that lists names of parameters.
    Names {
        /// Dotted names.
        names: Vec<String>,
    }
    /// Answer of `GetParameters`.
    GetParametersResponse {
        /// One per name.
        values: Vec<ParameterValue>,
    }
    /// Answer of `GetParameterTypes`.
    GetParameterTypesResponse {
        /// One of [`parameter_type`] per name.
        types: ByteBuf,
    }
    /// Request of `ListParameters`.
    ListParametersRequest {
        /// Groups to list; empty for all.
        prefixes: Vec<String>,
        /// How many parts of a name may follow the group; 0 for any number.
        depth: u64,
    }
    /// Answer of `ListParameters`.
    ListParametersResponse {
        /// What was found.
        result: ListParametersResult,
    }
    /// Answer of `DescribeParameters`.
    DescribeParametersResponse {
        /// One per name.
        descriptors: Vec<ParameterDescriptor>,
    }
    /// Request of `SetParameters` and `SetParametersAtomically`.
    SetParametersRequest {
        /// What to set.
        parameters: Vec<Parameter>,
    }
    /// Answer of `SetParameters`.
    SetParametersResponse {
        /// One per parameter.
        results: Vec<SetParametersResult>,
    }
    /// Answer of `SetParametersAtomically`.
    SetParametersAtomicallyResponse {
        /// One for all.
        result: SetParametersResult,
    }
    /// Request of `ChangeState`.
    ChangeStateRequest {
        /// The transition, by its label or, without one, by its number.
        transition: Transition,
    }
    /// Answer of `ChangeState`.
    ChangeStateResponse {
        /// Whether the node is in the new state.
        success: bool,
    }
    /// Answer of `GetState`.
    GetStateResponse {
        /// The state.
        current_state: State,
    }
    /// Answer of `GetAvailableStates`.
    GetAvailableStatesResponse {
        /// The states.
        available_states: Vec<State>,
    }
    /// Answer of `GetAvailableTransitions`.
    GetAvailableTransitionsResponse {
        /// The transitions.
        available_transitions: Vec<TransitionDescription>,
    }
}

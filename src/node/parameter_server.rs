//! The parameters on the network: the six services of `rcl_interfaces`, and `/parameter_events`.

use std::{
    future::{Ready, ready},
    sync::{Arc, Mutex, PoisonError},
};

use super::parameter_store::{ParameterStore, result_of};
use crate::ros::{
    msg::ByteBuf,
    srv::{
        DescribeParameters, DescribeParametersResponse, GetParameterTypes, GetParameterTypesResponse,
        GetParameters, GetParametersResponse, ListParameters, ListParametersResponse, Parameter,
        ParameterEvent, Service, SetParameters, SetParametersAtomically, SetParametersAtomicallyResponse,
        SetParametersResponse, SetParametersResult,
    },
    transport::{Publisher, Qos, RosError, RosNode, ServiceServer},
};

/// Offers a node's parameters until it is dropped.
#[must_use = "dropping it withdraws the services"]
pub struct ParameterServer {
    shared: Arc<Shared>,
    services: Vec<ServiceServer>,
}

struct Shared {
    node: RosNode,
    store: Arc<ParameterStore>,
    /// Held from a change to its announcement, so that events come in the order of the changes.
    events: Mutex<Publisher<ParameterEvent>>,
}

impl ParameterServer {
    /// Offers the parameters of `store` as those of `node`, and announces them.
    ///
    /// # Errors
    /// A refusal of the transport.
    pub fn start(node: &RosNode, store: Arc<ParameterStore>) -> Result<Self, RosError> {
        let events = Mutex::new(node.publisher("/parameter_events", Qos::parameter_events())?);
        let shared = Arc::new(Shared { node: node.clone(), store, events });
        let services = vec![
            shared.offer::<GetParameters>("~/get_parameters", |shared, request| GetParametersResponse {
                values: shared.store.get(&request.names),
            })?,
            shared.offer::<GetParameterTypes>("~/get_parameter_types", |shared, request| {
                GetParameterTypesResponse { types: ByteBuf::from(shared.store.types(&request.names)) }
            })?,
            shared.offer::<ListParameters>("~/list_parameters", |shared, request| {
                ListParametersResponse { result: shared.store.list(&request.prefixes, request.depth) }
            })?,
            shared.offer::<DescribeParameters>("~/describe_parameters", |shared, request| {
                DescribeParametersResponse { descriptors: shared.store.describe(&request.names) }
            })?,
            shared.offer::<SetParameters>("~/set_parameters", |shared, request| {
                let each = |parameter| shared.set(std::slice::from_ref(parameter));
                SetParametersResponse { results: request.parameters.iter().map(each).collect() }
            })?,
            shared.offer::<SetParametersAtomically>("~/set_parameters_atomically", |shared, request| {
                SetParametersAtomicallyResponse { result: shared.set(&request.parameters) }
            })?,
        ];
        let new_parameters = shared.store.all();
        shared.announce(&shared.lock(), ParameterEvent { new_parameters, ..ParameterEvent::default() });
        Ok(Self { shared, services })
    }

    /// Sets parameters from inside the node, as the services do: all or none.
    pub fn set(&self, parameters: &[Parameter]) -> SetParametersResult {
        self.shared.set(parameters)
    }

    /// The services on offer.
    pub fn services(&self) -> &[ServiceServer] {
        &self.services
    }
}

impl Shared {
    fn offer<S: Service>(
        self: &Arc<Self>,
        name: &str,
        answer: impl Fn(&Self, S::Request) -> S::Response + Send + 'static,
    ) -> Result<ServiceServer, RosError> {
        let shared = Arc::clone(self);
        self.node.serve::<S, Ready<S::Response>>(name, move |request| ready(answer(&shared, request)))
    }

    fn set(&self, parameters: &[Parameter]) -> SetParametersResult {
        let events = self.lock();
        let outcome = self.store.set(parameters);
        match &outcome {
            Ok(set) if !set.is_empty() => {
                for parameter in set {
                    tracing::info!("parameter {} was changed", parameter.name);
                }
                let changed_parameters = set.clone();
                self.announce(&events, ParameterEvent { changed_parameters, ..ParameterEvent::default() });
            }
            Ok(_) => {}
            Err(reason) => tracing::warn!("parameters stay as they are: {reason}"),
        }
        result_of(&outcome)
    }

    fn announce(&self, events: &Publisher<ParameterEvent>, event: ParameterEvent) {
        let event = ParameterEvent { stamp: self.node.now(), node: self.node.name().qualified(), ..event };
        if let Err(error) = events.publish(event) {
            tracing::warn!("a change of parameters is not announced: {error}");
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Publisher<ParameterEvent>> {
        // A publisher has no state of ours that could be half changed.
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

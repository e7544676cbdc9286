//! Services through `r2r`, whose services are typed: each of ours has a type of the crate's, and both have the same
//! serialised form, by which requests and responses are converted.

use std::sync::Arc;

use futures_util::StreamExt as _;
use r2r::{QosProfile, ServiceRequest, WrappedServiceTypeSupport, WrappedTypesupport as _};
use tokio::task::AbortHandle;

use super::{super::service::Counts, Node, middleware};
use crate::ros::{
    cdr,
    srv::Service,
    transport::{RosError, ServiceMapping},
};

/// The task that answers; it ends with this handle.
pub(in crate::ros::transport) struct Server(AbortHandle);

impl Drop for Server {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Node {
    /// The mapping is the middleware's business.
    pub(in crate::ros::transport) fn serve<S, H, F>(
        self: &Arc<Self>,
        name: &str,
        _mapping: ServiceMapping,
        counts: Arc<Counts>,
        handler: H,
    ) -> Result<Server, RosError>
    where
        S: Service,
        H: FnMut(S::Request) -> F + Send + 'static,
        F: Future<Output = S::Response> + Send + 'static,
    {
        macro_rules! serve_one_of {
            ($($(#[$condition:meta])* $package:ident/$service:ident),* $(,)?) => {
                match (S::PACKAGE, S::NAME) {
                    $($(#[$condition])*
                    (package, service) if (package, service) == (stringify!($package), stringify!($service)) => {
                        self.serve_as::<S, r2r::$package::srv::$service::Service, H, F>(name, counts, handler)
                    })*
                    (package, service) => Err(middleware(
                        format!("serve {name}"),
                        format!("this build does not know the service type {package}/srv/{service}"),
                    )),
                }
            };
        }
        serve_one_of! {
            lifecycle_msgs/ChangeState,
            lifecycle_msgs/GetAvailableStates,
            lifecycle_msgs/GetAvailableTransitions,
            lifecycle_msgs/GetState,
            rcl_interfaces/DescribeParameters,
            rcl_interfaces/GetParameterTypes,
            rcl_interfaces/GetParameters,
            rcl_interfaces/ListParameters,
            rcl_interfaces/SetParameters,
            rcl_interfaces/SetParametersAtomically,
            // Not among the types that the crate brings along for builds without ROS 2.
            #[cfg(not(feature = "r2r-doc-only"))]
            std_srvs/Trigger,
        }
    }

    fn serve_as<S, T, H, F>(
        self: &Arc<Self>,
        name: &str,
        counts: Arc<Counts>,
        mut handler: H,
    ) -> Result<Server, RosError>
    where
        S: Service,
        T: WrappedServiceTypeSupport + 'static,
        H: FnMut(S::Request) -> F + Send + 'static,
        F: Future<Output = S::Response> + Send + 'static,
    {
        let rcl_name = self.name_for_rcl(name);
        let mut requests = self
            .call(move |spinner| {
                spinner.node().create_service::<T>(&rcl_name, QosProfile::services_default())
            })?
            .map_err(|e| middleware(format!("serve {name}"), e))?;
        let name = name.to_owned();
        let mut stop = self.stop.subscribe();
        let task = self.runtime.spawn(async move {
            loop {
                let next = tokio::select! {
                    biased;
                    _ = stop.wait_for(|stop| *stop) => break,
                    next = requests.next() => next,
                };
                let Some(call) = next else { break };
                let request = match read::<S, T>(&call) {
                    Ok(request) => request,
                    Err(error) => {
                        let count = counts.count_damaged();
                        if count.is_power_of_two() {
                            tracing::warn!(
                                "{count} requests of {name} so far are not for this service: {error}"
                            );
                        }
                        continue;
                    }
                };
                let response = handler(request).await;
                match answer::<S, T>(call, &response) {
                    Ok(()) => counts.count_answered(),
                    Err(error) => {
                        counts.count_unsent();
                        tracing::warn!("a call of {name} could not be answered: {error}");
                    }
                }
            }
        });
        Ok(Server(task.abort_handle()))
    }
}

type AnyError = Box<dyn std::error::Error + Send + Sync>;

fn read<S: Service, T: WrappedServiceTypeSupport + 'static>(
    call: &ServiceRequest<T>,
) -> Result<S::Request, AnyError> {
    Ok(cdr::decode(&call.message.to_serialized_bytes()?)?)
}

fn answer<S: Service, T: WrappedServiceTypeSupport + 'static>(
    call: ServiceRequest<T>,
    response: &S::Response,
) -> Result<(), AnyError> {
    let bytes = cdr::encode(response)?;
    call.respond(r2r::WrappedTypesupport::from_serialized_bytes(&bytes)?)?;
    Ok(())
}

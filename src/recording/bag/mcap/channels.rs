//! The schemas and channels that an MCAP file declares.

use std::{collections::HashMap, sync::Arc};

use mcap::records::{Record, op};

use super::super::{
    limits::NAME_BYTES,
    message::Channel,
    qos::{OfferedQos, Profiles},
};

/// Declarations so far. The first one of an id counts, as the format asks for equal ones.
#[derive(Debug, Default, Clone)]
pub(super) struct Channels {
    schemas: HashMap<u16, String>,
    channels: HashMap<u16, Declared>,
}

/// A channel and what its publishers offered.
#[derive(Debug, Clone)]
pub(super) struct Declared {
    pub channel: Arc<Channel>,
    pub qos: Vec<OfferedQos>,
}

impl Channels {
    /// Takes the body of a schema or channel record.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn declare(&mut self, opcode: u8, body: &[u8]) -> Result<(), String> {
        match mcap::parse_record(opcode, body).map_err(|error| error.to_string())? {
            Record::Schema { header, .. } => {
                check(&header.name)?;
                self.schemas.entry(header.id).or_insert(header.name);
            }
            Record::Channel(channel) => {
                if self.channels.contains_key(&channel.id) {
                    return Ok(());
                }
                check(&channel.topic)?;
                check(&channel.message_encoding)?;
                let kind = match channel.schema_id {
                    0 => String::new(), // without a schema
                    id => match self.schemas.get(&id) {
                        Some(name) => name.clone(),
                        None => {
                            return Err(format!(
                                "the channel {:?} has the undeclared schema {id}",
                                channel.topic
                            ));
                        }
                    },
                };
                let qos = channel.metadata.get("offered_qos_profiles");
                let qos = qos.map(|text| Profiles::Text(text.clone()).parse()).unwrap_or_default();
                let declared = Channel { topic: channel.topic, kind, encoding: channel.message_encoding };
                self.channels.insert(channel.id, Declared { channel: Arc::new(declared), qos });
            }
            _ => {
                debug_assert!(false, "only declarations are handed in, found {opcode} ({} bytes)", op::SCHEMA)
            }
        }
        Ok(())
    }

    pub fn get(&self, id: u16) -> Option<&Arc<Channel>> {
        self.channels.get(&id).map(|declared| &declared.channel)
    }

    pub fn is_empty(&self) -> bool {
        self.channels.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = (u16, &Declared)> {
        self.channels.iter().map(|(id, declared)| (*id, declared))
    }
}

fn check(name: &str) -> Result<(), String> {
    if name.len() > NAME_BYTES {
        return Err(format!("a name of {} bytes, at most {NAME_BYTES} are read", name.len()));
    }
    Ok(())
}

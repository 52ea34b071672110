//! From a request to a stream or a result: the document is found, weighed and normalised, then it
//! is executed and its frames are encoded.

pub mod cost;
pub mod document;
pub mod encoder;
pub mod executor;
pub mod introspection;
pub mod offload;
pub mod persisted;
pub mod stated;
pub mod suggestions;
pub mod syntax;
pub mod variables;
pub mod weight;

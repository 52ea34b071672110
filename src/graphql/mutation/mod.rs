//! Mutations: what clients publish and place, and the port by which it leaves.

pub mod orders;
pub mod port;
pub mod publish;

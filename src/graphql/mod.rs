//! The schema, and its execution for the engine. Resolvers look at [`crate::live`]; nothing here
//! keeps state of its own but the documents that were parsed lately.

mod connections;
mod context;
mod errors;
pub(crate) mod execution;
mod identity;
mod limits;
mod mutation;
mod query;
mod subscription;
mod types;

pub use self::context::Caller;
pub use self::execution::executor::GraphqlExecutor;
pub use self::identity::Principal;
pub use self::limits::QueryLimits;
pub use self::mutation::port::{MutationMeters, MutationPort, WriteError, Written};
pub use self::query::HubView;

/// The schema as text: what `spreadly schema` prints and `config/schema.graphql` holds.
pub fn sdl() -> String {
    execution::executor::schema().finish().sdl()
}

#[cfg(test)]
mod tests {
    /// Set this variable to write the file.
    const REWRITE: &str = "SPREADLY_REWRITE_SCHEMA";

    #[test]
    fn the_schema_file_is_the_schema() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/config/schema.graphql");
        if std::env::var_os(REWRITE).is_some() {
            std::fs::write(path, super::sdl()).unwrap();
        }
        let written = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            written == super::sdl(),
            "config/schema.graphql differs: `spreadly schema` prints it, {REWRITE}=1 writes it"
        );
    }
}

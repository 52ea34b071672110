//! TLS to a hub, or to the proxy before it, as the machine trusts it.

use std::io;
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::{ClientConfig, RootCertStore};
use tokio_tungstenite::Connector;

use super::ClientError;

/// For a URL of this scheme. Root certificates are read only where they are needed.
pub fn connector(url: &str) -> Result<Connector, ClientError> {
    if !url.starts_with("wss://") {
        return Ok(Connector::Plain);
    }
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        let remedy = "install ca-certificates, or name a file by SSL_CERT_FILE";
        let reason = format!("the machine has no root certificates: {remedy}");
        return Err(ClientError::Tls(reason));
    }
    let provider = Arc::new(ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| ClientError::Tls(error.to_string()))?;
    let config = config.with_root_certificates(roots).with_no_client_auth();
    Ok(Connector::Rustls(Arc::new(config)))
}

/// Whether TLS failed for a reason of its own: a certificate, say, and no cut.
pub fn is_fault(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>())
}

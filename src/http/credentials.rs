//! Who asks, by the header of a request over HTTP.

use std::sync::Arc;

use hyper::StatusCode;
use hyper::header::{self, HeaderMap, HeaderValue};
use spreadly_subscriptions::{Credentials, ErrorCode, Executor, Grant};

use super::response::{Reply, refusal};
use super::routes::Http;
use crate::budgets::ClientAccount;

impl<E: Executor<Client = Arc<ClientAccount>>> Http<E> {
    /// What the credentials of a request prove, or the answer that they are refused.
    pub(super) async fn authenticate(
        &self,
        headers: &HeaderMap,
        account: &Arc<ClientAccount>,
    ) -> Result<Grant<E::Principal>, Box<Reply>> {
        let refused = |reason: &str| {
            Box::new(refusal(StatusCode::UNAUTHORIZED, ErrorCode::Unauthenticated, reason))
        };
        let header = match headers.get(header::AUTHORIZATION).map(HeaderValue::to_str) {
            Some(Ok(value)) => Some(value.to_owned()),
            Some(Err(_)) => return Err(refused("the header Authorization is not plain text")),
            None => None,
        };
        let checked = self.executor.authenticate(Credentials::Header(header), account);
        match tokio::time::timeout(self.config.init_timeout, checked).await {
            Ok(checked) => checked.map_err(|error| refused(&error.reason)),
            Err(_) => Err(Box::new(refusal(
                StatusCode::SERVICE_UNAVAILABLE,
                ErrorCode::Unavailable,
                "the credentials could not be checked in time: try again",
            ))),
        }
    }
}

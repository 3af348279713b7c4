//! Binding a listener, and saying what to do when the operating system refuses.
//!
//! Invariant: a message blames the setting that is wrong: the host for an address that is not there, the port for one
//! that is taken or needs rights.

use std::io::{Error, ErrorKind};

use thiserror::Error;
use tokio::net::TcpListener;

use crate::address::Host;

/// Why a listener could not be bound. Each is one line with a cause and a fix.
#[derive(Debug, Error)]
pub enum BindError {
    /// The name stands for no address.
    #[error(
        "cannot listen on {host}: no address is known for this name ({reason}); set --host (HOST) to an address of this machine, to 0.0.0.0 for all of them, or to 127.0.0.1 to be reachable from this machine only"
    )]
    Unknown {
        /// The name that was asked for.
        host: Host,
        /// What the resolver said.
        reason: String,
    },
    /// The address belongs to another machine.
    #[error(
        "cannot listen on {address}: this machine has no such address; set --host (HOST) to one that it has, to 0.0.0.0 for all of them, or to 127.0.0.1 to be reachable from this machine only"
    )]
    NotOurs {
        /// Host and port.
        address: String,
    },
    /// There is no IPv6 here.
    #[error(
        "cannot listen on {address}: this machine has no IPv6; set --host (HOST) to an IPv4 address such as 0.0.0.0"
    )]
    NoIpv6 {
        /// Host and port.
        address: String,
    },
    /// Another socket listens there.
    #[error(
        "cannot listen on {address}: the port is in use; stop the program that uses it, or choose another port with {setting}, such as 8001, or 0 for any that is free"
    )]
    InUse {
        /// Host and port.
        address: String,
        /// The flag of the port with its variable.
        setting: &'static str,
    },
    /// Low ports are for privileged programs.
    #[error(
        "cannot listen on {address}: this user may not use the port, since low ports need rights; choose one of 1024 or more with {setting}, such as 8000, or give the program CAP_NET_BIND_SERVICE"
    )]
    Rights {
        /// Host and port.
        address: String,
        /// The flag of the port with its variable.
        setting: &'static str,
    },
    /// Anything else.
    #[error("cannot listen on {address}: {source}; check --host (HOST) and {setting}")]
    System {
        /// Host and port.
        address: String,
        /// The flag of the port with its variable.
        setting: &'static str,
        /// What the operating system said.
        source: Error,
    },
}

/// Binds `port` of `host`. `setting` names the port's flag and variable for messages: `--port (PORT)`.
///
/// # Errors
/// When the address is not ours, or somebody else has the port.
pub async fn bind(host: &Host, port: u16, setting: &'static str) -> Result<TcpListener, BindError> {
    let addresses = tokio::net::lookup_host((host.as_str(), port)).await;
    let addresses = addresses.map_err(|error| BindError::Unknown {
        host: host.clone(),
        reason: resolver_said(&error),
    })?;
    let mut first_refusal = None;
    for address in addresses {
        match TcpListener::bind(address).await {
            Ok(listener) => return Ok(listener),
            Err(error) => {
                first_refusal.get_or_insert(error);
            }
        }
    }
    Err(match first_refusal {
        Some(error) => refusal(host, port, setting, error),
        None => BindError::Unknown {
            host: host.clone(),
            reason: "the resolver names none".to_owned(),
        },
    })
}

fn refusal(host: &Host, port: u16, setting: &'static str, source: Error) -> BindError {
    let address = host.with_port(port);
    if source.raw_os_error() == Some(libc::EAFNOSUPPORT) {
        return BindError::NoIpv6 { address };
    }
    match source.kind() {
        ErrorKind::AddrInUse => BindError::InUse { address, setting },
        ErrorKind::PermissionDenied => BindError::Rights { address, setting },
        ErrorKind::AddrNotAvailable => BindError::NotOurs { address },
        _ => BindError::System {
            address,
            setting,
            source,
        },
    }
}

/// The resolver's reason without what Rust puts in front of it.
fn resolver_said(error: &Error) -> String {
    let text = error.to_string();
    match text.strip_prefix("failed to lookup address information: ") {
        Some(reason) => reason.to_owned(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_blames_the_setting_that_is_wrong() {
        let told = |host: &str, code: i32| {
            refusal(
                &host.parse().unwrap(),
                80,
                "--admin-port (ADMIN_PORT)",
                Error::from_raw_os_error(code),
            )
            .to_string()
        };
        for (host, code, right, wrong) in [
            ("203.0.113.1", libc::EADDRNOTAVAIL, "--host (HOST)", "PORT"),
            ("::", libc::EAFNOSUPPORT, "--host (HOST)", "PORT"),
            ("::", libc::EACCES, "--admin-port (ADMIN_PORT)", "HOST"),
            (
                "0.0.0.0",
                libc::EADDRINUSE,
                "--admin-port (ADMIN_PORT)",
                "HOST",
            ),
        ] {
            let message = told(host, code);
            assert!(message.contains(right), "{message}");
            assert!(!message.contains(wrong), "{message}");
        }
        assert!(told("::", libc::EACCES).contains("cannot listen on [::]:80"));
        assert!(told("::", libc::EACCES).contains("1024 or more"));
        assert!(told("::", libc::EMFILE).contains("--host (HOST) and --admin-port (ADMIN_PORT)"));
    }

    #[tokio::test]
    async fn a_name_that_nobody_knows_is_the_hosts_fault() {
        let error = bind(&"name.invalid".parse().unwrap(), 0, "--port (PORT)")
            .await
            .unwrap_err();
        let message = error.to_string();
        assert!(
            message.contains("cannot listen on name.invalid"),
            "{message}"
        );
        assert!(!message.contains("PORT"), "{message}");
    }

    #[tokio::test]
    async fn hosts_in_brackets_and_names_are_bound() {
        for host in ["127.0.0.1", "localhost", "[::1]", "::"] {
            let bound = bind(&host.parse().unwrap(), 0, "--port (PORT)").await;
            // Where there is no IPv6, the message says so.
            assert!(
                matches!(
                    &bound,
                    Ok(_) | Err(BindError::NoIpv6 { .. } | BindError::NotOurs { .. })
                ),
                "{host}: {bound:?}"
            );
        }
    }
}

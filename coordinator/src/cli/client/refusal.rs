//! What the coordinator refuses, in words for people.

use std::fmt::Write as _;

use reqwest::{Response, StatusCode};

use super::{Refusal, body};
use crate::api::types::{Fault, Problem};
use crate::cli::exit::{Error, Kind};
use crate::cli::output::printable;

/// Largest refusal that is read, in bytes.
const BODY_BYTES_MAX: usize = 1 << 20;

/// The refusal in an answer.
pub(super) async fn refused(response: Response) -> Refusal {
    let status = response.status();
    let body = body(response, BODY_BYTES_MAX).await.unwrap_or_default();
    read(status, &body)
}

fn read(status: StatusCode, body: &[u8]) -> Refusal {
    let message = match serde_json::from_slice::<Problem>(body) {
        Ok(problem) => words(&problem),
        Err(_) => format!("the coordinator answered {status} without saying why"),
    };
    let error = |kind| Error::new(kind, message);
    match status {
        StatusCode::UNAUTHORIZED => Refusal::Final(
            error(Kind::NotAllowed).hint("give a token by --token-file FILE or PACKRUN_TOKEN; an admin makes one by `packrun tokens create --role ROLE`"),
        ),
        StatusCode::FORBIDDEN => Refusal::Final(
            error(Kind::NotAllowed).hint("it takes a token of a higher role: viewer < operator < admin"),
        ),
        StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => {
            Refusal::Passing(error(Kind::Unreachable).hint("try again in a while"))
        }
        status if status.is_server_error() => {
            Refusal::Passing(error(Kind::Unreachable).hint("`packrun status` says how the coordinator is"))
        }
        status if status.is_redirection() || status.is_informational() => Refusal::Final(
            error(Kind::Unreachable).hint("does --server name a packrun coordinator?"),
        ),
        _ => Refusal::Final(error(Kind::Invalid)),
    }
}

/// What the problem is, and the faults of a file on lines of their own, as compilers report them.
fn words(problem: &Problem) -> String {
    let mut words = printable(if problem.detail.is_empty() { &problem.title } else { &problem.detail });
    // A fault without a place may be what the whole says.
    let all = words.clone();
    let told = |fault: &&Fault| fault.line.is_some() || !all.contains(&printable(&fault.message));
    for fault in problem.errors.iter().filter(told) {
        words.push('\n');
        let places: Vec<_> = [fault.line, fault.column].into_iter().flatten().collect();
        for place in &places {
            let _ = write!(words, "{place}:");
        }
        words.push_str(if places.is_empty() { "- " } else { " " });
        words.push_str(&printable(&fault.message));
        if let Some(suggestion) = &fault.suggestion {
            let _ = write!(words, "; did you mean `{}`?", printable(suggestion));
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::exit;

    #[test]
    fn every_status_has_its_exit_code() {
        let cases = [
            (400, 2),
            (401, 4),
            (403, 4),
            (404, 2),
            (409, 2),
            (413, 2),
            (422, 2),
            (429, 4),
            (302, 4),
            (500, 4),
            (503, 4),
        ];
        for (status, expected) in cases {
            let (Refusal::Final(error) | Refusal::Passing(error)) =
                read(StatusCode::from_u16(status).unwrap(), b"{}");
            assert!(error.message.contains(&status.to_string()), "{error}");
            assert_eq!(exit::code(&Err(error)), expected, "{status}");
        }
    }

    #[test]
    fn a_problem_is_told_with_its_faults_and_without_commands_to_the_terminal() {
        let body = br#"{"type":"urn:packrun:problem:invalid-pack","title":"invalid pack","status":422,
            "detail":"the pack has 1 fault\u001b[2J","errors":[{"line":7,"column":5,"kind":"unknown_key",
            "message":"unknown key `neds`","suggestion":"needs"},
            {"line":null,"column":null,"kind":"limit","message":"has 1 fault"},
            {"line":null,"column":null,"kind":"limit","message":"it is too large"}]}"#;
        let Refusal::Final(error) = read(StatusCode::UNPROCESSABLE_ENTITY, body) else { panic!() };
        assert_eq!(
            error.message,
            "the pack has 1 fault\\u{1b}[2J\n7:5: unknown key `neds`; did you mean `needs`?\n- it is too large"
        );
    }
}

//! Any bytes as the answer of an encoder's server.
#![cfg(feature = "remote")]
#![allow(clippy::unwrap_used, reason = "a failed test is a panic")]

mod remote_server;
mod support;

use ebm_encoder::{EncoderError, Report};
use proptest::prelude::*;
use remote_server::Answer;
use remote_server::calls::{answering, connect, encode, right};
use support::{DIM, fake};

/// What a client makes of some bytes, for two states.
fn given(body: Vec<u8>) -> Result<(Vec<Report>, Vec<f32>), EncoderError> {
    let server = answering(move |_, request| right(request).with_body(&body));
    encode(&connect(&server), &["a", "b"])
}

fn body() -> Vec<u8> {
    Answer::of(&fake(), &["a".to_owned(), "b".to_owned()]).body()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn any_bytes_are_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..2000), ended: bool) {
        let end: &[u8] = if ended { &[255, 255, 255, 255, 0, 0, 0, 0] } else { &[] };
        let error = given([&bytes, end].concat()).unwrap_err().to_string();
        prop_assert!(error.contains("a wrong answer: "), "{}", error);
    }

    #[test]
    fn a_cut_answer_is_an_error(length in 0..body().len(), ended: bool) {
        let mut bytes = body();
        bytes.truncate(length);
        if ended {
            bytes.extend([255, 255, 255, 255, 0, 0, 0, 0]);
        }
        // Only where what is missing is the end that was put back.
        if let Ok((_, rows)) = given(bytes) {
            prop_assert!(ended && length + 8 >= body().len());
            prop_assert_eq!(rows, [fake().row("a"), fake().row("b")].concat());
        }
    }

    #[test]
    fn changed_bytes_give_an_error_or_whole_rows(
        changes in proptest::collection::vec((0..body().len(), any::<u8>()), 1..6)
    ) {
        let mut bytes = body();
        for (place, value) in changes {
            bytes[place] = value;
        }
        if let Ok((reports, rows)) = given(bytes) {
            prop_assert_eq!(reports.len(), 2);
            for (report, row) in reports.iter().zip(rows.chunks(DIM)) {
                prop_assert!(row.iter().all(|value| value.is_finite() == report.is_ok()));
            }
        }
    }
}

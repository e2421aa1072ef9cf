//! The published files of WikiText-2: what their bytes must be, and where a user's machine gets
//! them.

use super::Split;
use super::download::{Archive, Entry};

/// Which published text a split is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `wikitext-2-v1`: rare words replaced by `<unk>`.
    Tokens,
    /// `wikitext-2-raw-v1`: the text as written.
    Raw,
}

impl Form {
    /// The name of the configuration in the canonical `Salesforce/wikitext` repository.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tokens => "wikitext-2-v1",
            Self::Raw => "wikitext-2-raw-v1",
        }
    }
}

/// One published file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pin {
    pub(super) form: Form,
    pub(super) split: Split,
    pub(super) bytes: u64,
    pub(super) sha256: &'static str,
}

/// Every published file of both forms.
pub(super) const PINS: [Pin; 6] = [
    Pin {
        form: Form::Tokens,
        split: Split::Train,
        bytes: 10_797_148,
        sha256: "9e9fa1ad55b1c2c95b08e37dd8e653f638fac2c6de904b79e813611eefbc985f",
    },
    Pin {
        form: Form::Tokens,
        split: Split::Valid,
        bytes: 1_121_681,
        sha256: "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8",
    },
    Pin {
        form: Form::Tokens,
        split: Split::Test,
        bytes: 1_256_449,
        sha256: "d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0",
    },
    Pin {
        form: Form::Raw,
        split: Split::Train,
        bytes: 10_940_747,
        sha256: "6707892fa3788b5ab9ed78ab5ff37d9fe825f6011a2ad4fcd6a6d467f0e7da57",
    },
    Pin {
        form: Form::Raw,
        split: Split::Valid,
        bytes: 1_146_846,
        sha256: "4cd0f6876d07a413aa911261ff6d363c72d757d47f0fdd6015702014c89cb9c7",
    },
    Pin {
        form: Form::Raw,
        split: Split::Test,
        bytes: 1_290_590,
        sha256: "173c87a53759e0201f33e0ccf978e510c2042d7f2cb78229d9a50d79b9e7dd08",
    },
];

/// The published file with this hash, whatever it is called on disk.
pub(super) fn identify(sha256: &str) -> Option<Pin> {
    PINS.into_iter().find(|pin| pin.sha256 == sha256)
}

/// The raw form as one zip of plain text; the canonical repository holds Parquet files.
pub(super) fn archive() -> Archive {
    Archive {
        repo: "ggml-org/ci".into(),
        file: "wikitext-2-raw-v1.zip".into(),
        sha256: "ef7edb566e3e2b2d31b29c1fdb0c89a4cc683597484c3dc2517919c615435a11".into(),
        entries: PINS
            .iter()
            .filter(|pin| pin.form == Form::Raw)
            .map(|pin| Entry {
                name: format!("wiki.{}.raw", pin.split),
                bytes: pin.bytes,
                sha256: pin.sha256.into(),
            })
            .collect(),
    }
}

//! `--image-opts`: an image described by options such as `driver=qcow2,file.filename=disk.img`.

use std::collections::BTreeMap;

use diskette::options::Options;

use crate::Failure;

/// Splits `name=value,name=value`; a doubled comma stands for one.
pub(crate) fn split_options(text: &str) -> Result<BTreeMap<String, String>, Failure> {
    Options::parse(text).map(Options::into_map).map_err(Failure::from)
}

/// Reads the options that stand for an image.
pub(crate) fn image_options(text: &str) -> Result<Options, Failure> {
    if !text.is_empty() && !text.contains('=') {
        return Err(Failure::new(format!("Cannot find device='{text}' nor node-name='{text}'")));
    }
    Options::parse(text).map_err(Failure::from)
}

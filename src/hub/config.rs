//! Where the hub is, where its cache lies and with which token: the environment variables of `huggingface_hub`.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::platform::expanded;

/// The hub that is asked where `HF_ENDPOINT` names no other.
const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// Which hub, which cache, which rights.
#[derive(Debug, Clone)]
pub struct HubConfig {
    /// Scheme and host of the hub, no slash at the end.
    pub endpoint: String,
    /// The folder that holds `models--ORG--NAME`.
    pub cache_dir: PathBuf,
    /// Sent to the endpoint, and to no other host.
    pub token: Option<Token>,
    /// Never asks the network.
    pub offline: bool,
    /// Wait before the first repetition of a failed request; doubles with each.
    pub retry_delay: Duration,
}

/// An access token. Prints as `***`.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(pub String);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl HubConfig {
    /// Reads `HF_HOME HF_HUB_CACHE HF_ENDPOINT HF_TOKEN HF_TOKEN_PATH HF_HUB_OFFLINE` (and `XDG_CACHE_HOME`) as Python's
    /// `huggingface_hub` does: in folders, `~`, `~user` and `$VARIABLE` are expanded. Its older names count where those are not set:
    /// `HUGGINGFACE_HUB_CACHE`, `HUGGING_FACE_HUB_TOKEN`, `TRANSFORMERS_OFFLINE`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] where there is no home folder, or the endpoint is no http address.
    pub fn from_env() -> Result<HubConfig> {
        HubConfig::from_variables(&|name| std::env::var_os(name), dirs::home_dir())
    }

    fn from_variables(variable: &dyn Fn(&str) -> Option<OsString>, user_home: Option<PathBuf>) -> Result<HubConfig> {
        let trimmed = |value: OsString| value.to_str().map(|text| text.trim().into()).unwrap_or(value);
        let given = |name: &str| variable(name).map(trimmed).filter(|value| !value.is_empty());
        let get = |name: &str| given(name).map(|value| value.to_string_lossy().into_owned());
        let folder = |name: &str| given(name).map(|text| expanded(&text, user_home.as_deref(), variable));
        let hf_home = folder("HF_HOME")
            .or_else(|| folder("XDG_CACHE_HOME").map(|cache| cache.join("huggingface")))
            .or_else(|| user_home.as_ref().map(|home| home.join(".cache").join("huggingface")))
            .ok_or_else(|| Error::InvalidArgument {
                option: "HF_HOME".into(),
                reason: "there is no home folder to keep models in; set HF_HOME to a folder".into(),
            })?;
        let endpoint = get("HF_ENDPOINT").unwrap_or_else(|| DEFAULT_ENDPOINT.into()).trim_end_matches('/').to_owned();
        if !endpoint.starts_with("https://") && !endpoint.starts_with("http://") {
            return Err(Error::InvalidArgument {
                option: "HF_ENDPOINT".into(),
                reason: format!("`{endpoint}` is no address; write https://HOST"),
            });
        }
        let token_path = folder("HF_TOKEN_PATH").unwrap_or_else(|| hf_home.join("token"));
        let token = get("HF_TOKEN").or_else(|| get("HUGGING_FACE_HUB_TOKEN"));
        let token = token.or_else(|| std::fs::read_to_string(token_path).ok().map(|text| text.trim().to_owned()));
        Ok(HubConfig {
            endpoint,
            cache_dir: folder("HF_HUB_CACHE").or_else(|| folder("HUGGINGFACE_HUB_CACHE")).unwrap_or_else(|| hf_home.join("hub")),
            token: token.filter(|text| !text.is_empty()).map(Token),
            offline: get("HF_HUB_OFFLINE").or_else(|| get("TRANSFORMERS_OFFLINE")).is_some_and(|text| is_true(&text)),
            retry_delay: Duration::from_millis(500),
        })
    }
}

fn is_true(text: &str) -> bool {
    ["1", "on", "yes", "true"].contains(&text.to_ascii_lowercase().as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(variables: &[(&str, &str)]) -> Result<HubConfig> {
        let get = |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value));
        HubConfig::from_variables(&get, Some(PathBuf::from("/nowhere/user")))
    }

    #[test]
    fn folders_follow_the_variables_in_pythons_order() {
        let cache = |variables: &[(&str, &str)]| config(variables).unwrap().cache_dir;
        assert_eq!(cache(&[]), PathBuf::from("/nowhere/user/.cache/huggingface/hub"));
        assert_eq!(cache(&[("XDG_CACHE_HOME", "/x")]), PathBuf::from("/x/huggingface/hub"));
        assert_eq!(cache(&[("XDG_CACHE_HOME", "/x"), ("HF_HOME", "~/h")]), PathBuf::from("/nowhere/user/h/hub"));
        assert_eq!(cache(&[("HF_HOME", "/h"), ("HF_HUB_CACHE", "/c")]), PathBuf::from("/c"));
        assert_eq!(cache(&[("HF_HOME", "$HOME/hfx"), ("HOME", "/h")]), PathBuf::from("/h/hfx/hub"));
        assert_eq!(cache(&[("HF_HOME", "~")]), PathBuf::from("/nowhere/user/hub"));
        assert!(!cache(&[("HF_HUB_CACHE", "~root/x")]).starts_with("~root") || cfg!(not(unix)));
    }

    #[test]
    fn older_names_count_where_the_newer_are_not_set() {
        let older = [("HUGGINGFACE_HUB_CACHE", "/o"), ("HUGGING_FACE_HUB_TOKEN", "hf_o"), ("TRANSFORMERS_OFFLINE", "1")];
        let newer = [("HF_HUB_CACHE", "/n"), ("HF_TOKEN", "hf_n"), ("HF_HUB_OFFLINE", "0")];
        let read = |variables: &[(&str, &str)]| {
            let read = config(variables).unwrap();
            (read.cache_dir.to_str().unwrap().to_owned(), read.token.unwrap().0, read.offline)
        };
        assert_eq!(read(&older), ("/o".into(), "hf_o".into(), true));
        assert_eq!(read(&[older, newer].concat()), ("/n".into(), "hf_n".into(), false));
    }

    #[cfg(unix)]
    #[test]
    fn a_folder_need_not_be_utf_8() {
        use std::os::unix::ffi::OsStringExt;
        let home = OsString::from_vec(b"/caf\xe9".to_vec());
        let get = |name: &str| (name == "HF_HOME").then(|| home.clone());
        assert_eq!(HubConfig::from_variables(&get, None).unwrap().cache_dir, PathBuf::from(&home).join("hub"));
    }

    #[test]
    fn token_endpoint_and_offline_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        std::fs::write(&path, "hf_file\n").unwrap();
        let path = path.to_str().unwrap();
        assert_eq!(config(&[("HF_TOKEN_PATH", path)]).unwrap().token, Some(Token("hf_file".into())));
        let read = config(&[("HF_TOKEN_PATH", path), ("HF_TOKEN", " hf_env "), ("HF_ENDPOINT", "http://h/"), ("HF_HUB_OFFLINE", "YES")]);
        let read = read.unwrap();
        assert_eq!((read.token, read.endpoint.as_str(), read.offline), (Some(Token("hf_env".into())), "http://h", true));
        assert!(!config(&[("HF_HUB_OFFLINE", "0")]).unwrap().offline);
        assert!(config(&[("HF_ENDPOINT", "ftp://h")]).is_err());
    }

    #[test]
    fn a_token_does_not_print() {
        let read = config(&[("HF_TOKEN", "hf_secret")]).unwrap();
        assert!(!format!("{read:?}").contains("hf_secret"));
    }
}

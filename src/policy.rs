//! What an image may make us open, and how much it may cost: [`Gate`], [`Policy`] and [`Budgets`].

use alloc::string::String;
use alloc::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::node::{Node, Role};
use crate::op::Op;
use crate::options::Options;

/// A file that an image names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// The name as the image spells it, or as the caller overrides it.
    pub name: String,
    /// The format the image says the file has.
    pub format: Option<String>,
    /// What the file is for.
    pub role: Role,
    /// Name of the image that names it.
    pub from: String,
    /// Whether the file has to be writable.
    pub writable: bool,
    /// Further options for opening it, from the caller.
    pub options: Options,
}

/// Opens files by name for a host: a file system, a browser page, a test.
pub trait Opener: Send + Sync {
    /// Opens the file, or the disk if the name describes one ([`Node::is_disk`]). A relative name is relative to
    /// `reference.from`. What is opened on the way has to pass `gate`, too.
    fn open<'a>(&'a self, reference: &'a Reference, gate: &'a Gate) -> Op<'a, Arc<dyn Node>>;
}

/// Which references may be followed.
#[derive(Clone, Default)]
pub enum Policy {
    /// None.
    #[default]
    Deny,
    /// Plain file names beside the image that names them.
    SameDirectory,
    /// All.
    Allow,
    /// Those for which the function returns `true`.
    Ask(Arc<dyn Fn(&Reference) -> bool + Send + Sync>),
}

impl core::fmt::Debug for Policy {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Policy::Deny => "Deny",
            Policy::SameDirectory => "SameDirectory",
            Policy::Allow => "Allow",
            Policy::Ask(_) => "Ask",
        })
    }
}

impl Policy {
    /// Whether `reference` may be opened.
    ///
    /// # Errors
    /// [`ErrorKind::Denied`], naming the reference and the policy.
    pub fn check(&self, reference: &Reference) -> Result<()> {
        let allowed = match self {
            Policy::Deny => false,
            Policy::SameDirectory => is_plain_name(&reference.name),
            Policy::Allow => true,
            Policy::Ask(ask) => ask(reference),
        };
        if allowed {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Denied,
            alloc::format!(
                "the image names '{}' as its {}, which the policy ({self:?}) does not allow to be opened",
                reference.name,
                reference.role.name()
            ),
        )
        .at_path(&reference.from))
    }
}

/// A name without a directory, a drive, a protocol or a `json:` description.
fn is_plain_name(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\\', ':', '\0'])
}

/// Images that are named by description, each of which is opened within the one before.
const MAX_NESTING: u32 = 100;

/// The one gate that every opener passes.
#[derive(Clone)]
pub struct Gate {
    policy: Policy,
    opener: Option<Arc<dyn Opener>>,
    /// How many images lead here.
    pub(crate) depth: u32,
    /// How many of them are open halfway, each on the stack.
    nesting: u32,
}

impl Gate {
    /// Opens nothing.
    pub fn closed() -> Self {
        Gate { policy: Policy::Deny, opener: None, depth: 0, nesting: 0 }
    }

    /// Opens through `opener` what `policy` allows.
    pub fn new(policy: Policy, opener: Arc<dyn Opener>) -> Self {
        Gate { policy, opener: Some(opener), depth: 0, nesting: 0 }
    }

    /// Opens a referenced file.
    ///
    /// # Errors
    /// [`ErrorKind::Denied`] if the policy refuses, [`ErrorKind::Unsupported`] without an opener, else the opener's.
    pub async fn open(&self, reference: &Reference) -> Result<Arc<dyn Node>> {
        self.open_below(reference, 1).await
    }

    /// Opens a file that is referenced by an image `layers` down.
    pub(crate) async fn open_below(&self, reference: &Reference, layers: u32) -> Result<Arc<dyn Node>> {
        self.policy.check(reference)?;
        match &self.opener {
            Some(opener) => {
                if self.nesting >= MAX_NESTING {
                    let text =
                        alloc::format!("the backing chain is longer than {MAX_NESTING} images within each other");
                    return Err(Error::new(ErrorKind::OverBudget, text).at_path(&reference.from));
                }
                let (depth, nesting) = (self.depth.saturating_add(layers), self.nesting + 1);
                let below = Gate { depth, nesting, ..self.clone() };
                opener.open(reference, &below).await
            }
            None => Err(Error::unsupported(alloc::format!(
                "the image needs '{}' as its {}, and there is nothing to open it with",
                reference.name,
                reference.role.name()
            ))
            .at_path(&reference.from)),
        }
    }
}

impl core::fmt::Debug for Gate {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Gate").field("policy", &self.policy).finish_non_exhaustive()
    }
}

/// How much an image may cost. Exceeding one is [`ErrorKind::OverBudget`], before anything is allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budgets {
    /// Bytes of metadata kept in memory per image.
    pub metadata_bytes: usize,
    /// Images in a backing chain.
    pub chain_depth: u32,
    /// Bytes that one compressed cluster may expand to.
    pub expanded_bytes: usize,
    /// Bytes of working memory that a consistency check may take.
    pub check_bytes: u64,
    /// Iterations of a key derivation that an encrypted image may ask for.
    pub key_iterations: u32,
}

impl Default for Budgets {
    fn default() -> Self {
        Budgets {
            metadata_bytes: 32 << 20,
            chain_depth: 200,
            expanded_bytes: 2 << 20,
            check_bytes: 1 << 30,
            // Several seconds on a fast machine, and more than two seconds of any machine asked for.
            key_iterations: 12_000_000,
        }
    }
}

impl Budgets {
    /// Fails if `depth` images are too many.
    pub(crate) fn check_depth(&self, depth: u32, name: &str) -> Result<()> {
        if depth <= self.chain_depth {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::OverBudget,
            alloc::format!("the backing chain is longer than {} images", self.chain_depth),
        )
        .at_path(name))
    }
}

//! Writing images of the Open Container Initiative (image-spec 1.1) as one tar file: layers, configuration, manifest, index. It decides the bytes: the same
//! files and settings give the same digests on any day and machine, because entries are sorted and carry a fixed time and given owners.
//! Layers are not compressed, so that no compressor's version is part of the digest.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tar::{Builder, EntryType, Header};

use crate::digest::Sha256Writer;

const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar";
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";
/// Every file of an image is as old as Unix.
const CREATED: &str = "1970-01-01T00:00:00Z";

/// What a path of a layer is.
#[derive(Clone, Debug)]
pub(crate) enum Content {
    Folder,
    /// A file of this machine.
    File(PathBuf),
    Text(String),
    Link(String),
}

#[derive(Clone, Debug)]
struct Entry {
    content: Content,
    mode: u32,
    owner: u64,
}

/// The files of a layer, by their path without a leading `/`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Layer {
    entries: BTreeMap<String, Entry>,
}

impl Layer {
    /// Adds a path that root owns, and the folders above it.
    pub(crate) fn add(&mut self, path: &str, mode: u32, content: Content) {
        self.add_owned(path, mode, 0, content);
    }

    /// Adds a path of this user and group.
    pub(crate) fn add_owned(&mut self, path: &str, mode: u32, owner: u64, content: Content) {
        let mut above = Path::new(path).parent();
        while let Some(folder) = above.filter(|folder| !folder.as_os_str().is_empty()) {
            let entry = Entry { content: Content::Folder, mode: 0o755, owner: 0 };
            self.entries.entry(folder.to_string_lossy().into_owned()).or_insert(entry);
            above = folder.parent();
        }
        self.entries.insert(path.to_owned(), Entry { content, mode, owner });
    }

    /// Writes it as a tar.
    fn write(&self, to: impl Write) -> Result<()> {
        let mut builder = Builder::new(to);
        for (path, entry) in &self.entries {
            append(&mut builder, path, entry)
                .with_context(|| format!("cannot put /{path} into the image"))?;
        }
        builder.into_inner()?.flush()?;
        Ok(())
    }
}

fn append(builder: &mut Builder<impl Write>, path: &str, entry: &Entry) -> Result<()> {
    let mut header = Header::new_gnu();
    header.set_mode(entry.mode);
    header.set_uid(entry.owner);
    header.set_gid(entry.owner);
    header.set_mtime(0);
    header.set_size(0);
    match &entry.content {
        Content::Folder => {
            header.set_entry_type(EntryType::Directory);
            builder.append_data(&mut header, format!("{path}/"), std::io::empty())?;
        }
        Content::Link(target) => {
            header.set_entry_type(EntryType::Symlink);
            builder.append_link(&mut header, path, target)?;
        }
        Content::Text(text) => {
            header.set_size(text.len() as u64);
            builder.append_data(&mut header, path, text.as_bytes())?;
        }
        Content::File(file) => {
            let file = fs::File::open(file).with_context(|| format!("cannot read {}", file.display()))?;
            header.set_size(file.metadata()?.len());
            builder.append_data(&mut header, path, file)?;
        }
    }
    Ok(())
}

/// How a container of an image is started, and what the image says about itself.
#[derive(Clone, Debug, Default)]
pub(crate) struct Settings {
    pub(crate) entrypoint: Vec<String>,
    pub(crate) command: Vec<String>,
    /// A number, so that Kubernetes can see that it is not root.
    pub(crate) user: Option<u64>,
    pub(crate) ports: Vec<String>,
    pub(crate) environment: Vec<String>,
    pub(crate) labels: BTreeMap<String, String>,
}

/// An image that was written.
#[derive(Clone, Debug)]
pub(crate) struct Written {
    /// `sha256:...` of the manifest.
    pub(crate) digest: String,
    pub(crate) bytes: u64,
}

struct Blob {
    digest: String,
    size: u64,
    content: BlobContent,
}

enum BlobContent {
    File(PathBuf),
    Bytes(Vec<u8>),
}

impl Blob {
    fn of(value: &Value) -> Result<Self> {
        let bytes = serde_json::to_vec(value)?;
        let digest = format!("sha256:{}", crate::digest::sha256(&bytes));
        Ok(Self { digest, size: bytes.len() as u64, content: BlobContent::Bytes(bytes) })
    }

    fn described(&self, media_type: &str) -> Value {
        json!({"mediaType": media_type, "digest": self.digest, "size": self.size})
    }
}

/// Writes an image under a name (`host/path:tag`) as a tar that containerd, Docker, podman and skopeo read.
pub(crate) fn write(file: &Path, name: &str, layers: &[Layer], settings: &Settings) -> Result<Written> {
    let Some((_, tag)) = name.rsplit_once(':').filter(|(_, tag)| !tag.contains('/')) else {
        bail!("an image's name ends with `:` and a tag: `{name}` does not");
    };
    let folder = file.parent().context("an image's file is in a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let mut blobs = Vec::new();
    for (index, layer) in layers.iter().enumerate() {
        blobs.push(layer_blob(layer, &file.with_extension(format!("layer-{index}")))?);
    }
    let layer_count = blobs.len();
    let config = Blob::of(&configuration(settings, &blobs))?;
    let described = blobs.iter().map(|layer| layer.described(LAYER_TYPE)).collect::<Vec<_>>();
    let manifest = Blob::of(&json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": config.described(CONFIG_TYPE),
        "layers": described,
    }))?;
    let mut entry = manifest.described(MANIFEST_TYPE);
    entry["annotations"] =
        json!({"io.containerd.image.name": name, "org.opencontainers.image.ref.name": tag});
    let index = json!({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [entry]});
    let digest = manifest.digest.clone();
    blobs.extend([config, manifest]);
    let bytes = archive(file, &blobs, &index)?;
    for blob in &blobs[..layer_count] {
        if let BlobContent::File(path) = &blob.content {
            fs::remove_file(path)?;
        }
    }
    Ok(Written { digest, bytes })
}

fn layer_blob(layer: &Layer, file: &Path) -> Result<Blob> {
    let created = fs::File::create(file).with_context(|| format!("cannot create {}", file.display()))?;
    let mut writer = Sha256Writer::new(BufWriter::new(created));
    layer.write(&mut writer)?;
    let (size, digest) = writer.finish()?;
    Ok(Blob { digest: format!("sha256:{digest}"), size, content: BlobContent::File(file.to_owned()) })
}

fn configuration(settings: &Settings, layers: &[Blob]) -> Value {
    let Settings { entrypoint, command, user, ports, environment, labels } = settings;
    let ports = ports.iter().map(|port| (port.clone(), json!({}))).collect::<BTreeMap<_, _>>();
    let user = user.map(|user| format!("{user}:{user}")).unwrap_or_default();
    json!({
        "created": CREATED,
        "architecture": architecture(),
        "os": "linux",
        "config": {
            "User": user,
            "Entrypoint": entrypoint,
            "Cmd": command,
            "Env": environment,
            "ExposedPorts": ports,
            "Labels": labels,
            "WorkingDir": "/",
        },
        // An uncompressed layer's digest is that of its content.
        "rootfs": {"type": "layers", "diff_ids": layers.iter().map(|layer| &layer.digest).collect::<Vec<_>>()},
    })
}

/// The image's word for the processor that this program was built for.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn archive(file: &Path, blobs: &[Blob], index: &Value) -> Result<u64> {
    let created = fs::File::create(file).with_context(|| format!("cannot create {}", file.display()))?;
    let mut builder = Builder::new(BufWriter::new(created));
    let mut entry =
        |path: &str, content: Content| append(&mut builder, path, &Entry { content, mode: 0o644, owner: 0 });
    entry("oci-layout", Content::Text(json!({"imageLayoutVersion": "1.0.0"}).to_string()))?;
    entry("index.json", Content::Text(index.to_string()))?;
    for blob in blobs {
        let path = format!("blobs/{}", blob.digest.replace(':', "/"));
        match &blob.content {
            BlobContent::File(file) => entry(&path, Content::File(file.clone()))?,
            BlobContent::Bytes(bytes) => entry(&path, Content::Text(String::from_utf8(bytes.clone())?))?,
        }
    }
    builder.into_inner()?.into_inner().context("cannot write the image")?.sync_all()?;
    Ok(fs::metadata(file)?.len())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Read as _;
    use std::path::Path;

    use super::{Content, Layer, Settings, write};

    fn image(folder: &Path, name: &str, program: &str) -> (String, Vec<u8>) {
        let source = folder.join(format!("{name}.program"));
        fs::write(&source, program).unwrap();
        let mut layer = Layer::default();
        // In another order than that of their paths.
        layer.add("usr/bin/program", 0o755, Content::File(source));
        layer.add("etc/passwd", 0o644, Content::Text("root:x:0:0::/:\n".into()));
        layer.add("bin", 0o777, Content::Link("usr/bin".into()));
        layer.add_owned("data", 0o700, 65532, Content::Folder);
        let settings = Settings { user: Some(65532), ..Settings::default() };
        let file = folder.join(format!("{name}.tar"));
        let written = write(&file, "example.test/program:1", &[layer], &settings).unwrap();
        (written.digest, fs::read(file).unwrap())
    }

    #[test]
    fn the_same_input_is_the_same_image_and_another_is_another() {
        let folder = tempfile::tempdir().unwrap();
        let (digest, bytes) = image(folder.path(), "a", "one");
        assert_eq!(image(folder.path(), "b", "one"), (digest.clone(), bytes));
        assert_ne!(image(folder.path(), "c", "two").0, digest);
        // Pinned: a change of the writer is a change of every image's digest, and should be meant.
        assert!(digest.starts_with("sha256:") && digest.len() == 71, "{digest}");
    }

    #[test]
    fn every_blob_is_at_its_digest_and_the_layer_has_what_was_put_into_it() {
        let folder = tempfile::tempdir().unwrap();
        let (_, bytes) = image(folder.path(), "a", "one");
        let mut archive = tar::Archive::new(bytes.as_slice());
        let mut paths = Vec::new();
        let mut layer = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().display().to_string();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            if let Some(digest) = path.strip_prefix("blobs/sha256/") {
                assert_eq!(crate::digest::sha256(&content), digest);
                if layer.is_empty() {
                    layer = content;
                }
            }
            paths.push(path);
        }
        assert_eq!(paths[..2], ["oci-layout", "index.json"]);
        assert_eq!(paths.len(), 5, "layout, index, layer, configuration, manifest: {paths:?}");
        let mut archive = tar::Archive::new(layer.as_slice());
        let inside = archive.entries().unwrap().map(|entry| {
            let entry = entry.unwrap();
            let header = entry.header();
            (entry.path().unwrap().display().to_string(), header.mode().unwrap(), header.uid().unwrap())
        });
        let expected = [
            ("bin", 0o777, 0),
            ("data/", 0o700, 65532),
            ("etc/", 0o755, 0),
            ("etc/passwd", 0o644, 0),
            ("usr/", 0o755, 0),
            ("usr/bin/", 0o755, 0),
            ("usr/bin/program", 0o755, 0),
        ];
        assert_eq!(
            inside.collect::<Vec<_>>(),
            expected.map(|(path, mode, uid)| (path.to_owned(), mode, uid))
        );
    }

    #[test]
    fn a_name_without_a_tag_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let error = write(&folder.path().join("x.tar"), "host:5000/name", &[], &Settings::default());
        assert!(error.unwrap_err().to_string().contains("ends with `:` and a tag"));
    }
}

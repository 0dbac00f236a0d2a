//! Who is who in a cluster: an authority, a certificate for each program, and the kubeconfig files by which they reach the API server.
//! Keys are of the cluster alone and go with its folder.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use std::io::Write as _;

use super::layout::{API_SERVICE_ADDRESS, NodeNumber};

/// The files of the authority and of the key that signs service accounts' tokens.
pub(crate) const AUTHORITY: &str = "ca.crt";
pub(crate) const TOKEN_KEY: &str = "sa.key";
pub(crate) const TOKEN_PUBLIC_KEY: &str = "sa.pub";

/// A program or a person, as the API server knows it.
struct Identity<'a> {
    /// Of its files.
    file: String,
    name: String,
    group: Option<&'a str>,
    addresses: Vec<Ipv4Addr>,
    host_names: Vec<String>,
}

/// Writes the keys of a cluster whose API server has this address and port.
pub(crate) fn make(folder: &Path, address: Ipv4Addr, port: u16, nodes: u8) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let mut parameters = CertificateParams::new(Vec::new())?;
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    parameters.distinguished_name.push(DnType::CommonName, "debros local cluster");
    let key = KeyPair::generate()?;
    let authority = parameters.self_signed(&key)?.pem();
    write(folder, AUTHORITY, &authority)?;
    let issuer = Issuer::new(parameters, key);
    let server = format!("https://{address}:{port}");
    for identity in identities(address, nodes) {
        let (certificate, key) = certificate(&identity, &issuer)?;
        write(folder, &format!("{}.crt", identity.file), &certificate)?;
        write(folder, &format!("{}.key", identity.file), &key)?;
        let kubeconfig = kubeconfig(&server, &authority, &certificate, &key);
        write(folder, &format!("{}.conf", identity.file), &kubeconfig)?;
    }
    let tokens = KeyPair::generate()?;
    write(folder, TOKEN_KEY, &tokens.serialize_pem())?;
    write(folder, TOKEN_PUBLIC_KEY, &tokens.public_key_pem())
}

fn identities(address: Ipv4Addr, nodes: u8) -> Vec<Identity<'static>> {
    let plain = |file: &str, name: &str, group| Identity {
        file: file.to_owned(),
        name: name.to_owned(),
        group,
        addresses: Vec::new(),
        host_names: Vec::new(),
    };
    let mut all = vec![
        Identity {
            addresses: vec![address, Ipv4Addr::LOCALHOST, API_SERVICE_ADDRESS],
            host_names: ["localhost", "kubernetes.default.svc"].map(str::to_owned).to_vec(),
            ..plain("apiserver", "kube-apiserver", None)
        },
        plain("admin", "admin", Some("system:masters")),
        plain("controller-manager", "system:kube-controller-manager", None),
        plain("scheduler", "system:kube-scheduler", None),
        plain("proxy", "system:kube-proxy", None),
    ];
    all.extend(NodeNumber::all(nodes).map(|node| Identity {
        addresses: vec![node.address()],
        host_names: vec![node.name()],
        ..plain(&node.name(), &format!("system:node:{}", node.name()), Some("system:nodes"))
    }));
    all
}

/// A certificate and its key, in PEM.
fn certificate(identity: &Identity<'_>, issuer: &Issuer<'_, KeyPair>) -> Result<(String, String)> {
    let mut parameters = CertificateParams::new(identity.host_names.clone())?;
    let addresses = identity.addresses.iter().map(|address| SanType::IpAddress(IpAddr::V4(*address)));
    parameters.subject_alt_names.extend(addresses);
    parameters.distinguished_name.push(DnType::CommonName, identity.name.clone());
    if let Some(group) = identity.group {
        parameters.distinguished_name.push(DnType::OrganizationName, group);
    }
    parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    parameters.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let key = KeyPair::generate()?;
    Ok((parameters.signed_by(&key, issuer)?.pem(), key.serialize_pem()))
}

/// A kubeconfig that holds everything; JSON is YAML.
fn kubeconfig(server: &str, authority: &str, certificate: &str, key: &str) -> String {
    let encoded = |text: &str| STANDARD.encode(text);
    let value = serde_json::json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "local", "cluster": {"server": server, "certificate-authority-data": encoded(authority)}}],
        "users": [{"name": "user", "user": {"client-certificate-data": encoded(certificate), "client-key-data": encoded(key)}}],
        "contexts": [{"name": "local", "context": {"cluster": "local", "user": "user"}}],
        "current-context": "local",
    });
    format!("{value:#}\n")
}

/// Only its owner may read what is mostly keys.
fn write(folder: &Path, name: &str, text: &str) -> Result<()> {
    let path = folder.join(name);
    let file = fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(&path);
    let written = file.and_then(|mut file| file.write_all(text.as_bytes()));
    written.with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::net::Ipv4Addr;
    use std::os::unix::fs::PermissionsExt as _;

    use super::make;

    #[test]
    fn every_program_has_its_files_and_nobody_else_reads_them() {
        let folder = tempfile::tempdir().unwrap();
        make(folder.path(), Ipv4Addr::LOCALHOST, 6443, 2).unwrap();
        for name in ["apiserver", "admin", "controller-manager", "scheduler", "proxy", "node-1", "node-2"] {
            for ending in ["crt", "key", "conf"] {
                let file = folder.path().join(format!("{name}.{ending}"));
                assert_eq!(fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600);
            }
        }
        let config = fs::read_to_string(folder.path().join("admin.conf")).unwrap();
        let config: serde_json::Value = serde_json::from_str(&config).unwrap();
        assert_eq!(config["clusters"][0]["cluster"]["server"], "https://127.0.0.1:6443");
        let public = fs::read_to_string(folder.path().join("sa.pub")).unwrap();
        assert!(public.starts_with("-----BEGIN PUBLIC KEY-----"), "{public}");
    }
}

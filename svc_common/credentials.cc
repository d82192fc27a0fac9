#include "svc_common/credentials.h"

#include <grpcpp/security/auth_context.h>
#include <grpcpp/security/tls_certificate_provider.h>
#include <grpcpp/security/tls_credentials_options.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include "absl/strings/str_cat.h"

namespace viommu {
namespace {

// How often the certificate files are looked at, seconds.
constexpr unsigned int kReloadSeconds = 5;

enum class Transport { kClear, kMutualTls };

absl::StatusOr<Transport> Choose(const Address& address, const TlsFlags& tls) {
  if (tls.given()) {
    if (tls.cert.empty() || tls.key.empty() || tls.ca.empty()) {
      return absl::InvalidArgumentError(
          "--tls_cert, --tls_key and --tls_ca are given all three or not at all");
    }
    for (const std::string* file : {&tls.cert, &tls.key, &tls.ca}) {
      if (access(file->c_str(), R_OK) != 0) {
        return absl::InvalidArgumentError(absl::StrCat("cannot read ", *file));
      }
    }
    // A unix socket's peer has no host name to check a certificate against; its permissions do.
    if (!address.is_unix()) return Transport::kMutualTls;
    return Transport::kClear;
  }
  if (address.is_local()) return Transport::kClear;
  if (!tls.insecure) {
    return absl::InvalidArgumentError(
        absl::StrCat(address.ToString(),
                     " can be reached from other machines: give --tls_cert, --tls_key and "
                     "--tls_ca, or --insecure to do without"));
  }
  spdlog::warn("--insecure: traffic with {} is neither encrypted nor authenticated",
               address.ToString());
  return Transport::kClear;
}

std::shared_ptr<grpc::experimental::FileWatcherCertificateProvider> Watch(const TlsFlags& tls) {
  return std::make_shared<grpc::experimental::FileWatcherCertificateProvider>(
      tls.key, tls.cert, tls.ca, kReloadSeconds);
}

}  // namespace

void TlsFlags::AddTo(FlagSet& flags) {
  flags.AddString("tls_cert", &cert, "certificate chain, PEM");
  flags.AddString("tls_key", &key, "private key of --tls_cert, PEM");
  flags.AddString("tls_ca", &ca, "authorities whose certificates the other side must show, PEM");
  flags.AddBool("insecure", &insecure,
                "allow TCP beyond this machine without TLS (logged as a warning)");
}

absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> MakeServerCredentials(
    const Address& listen, const TlsFlags& tls) {
  const absl::StatusOr<Transport> transport = Choose(listen, tls);
  if (!transport.ok()) return transport.status();
  if (*transport == Transport::kClear) return grpc::InsecureServerCredentials();
  grpc::experimental::TlsServerCredentialsOptions options(Watch(tls));
  options.watch_root_certs();
  options.watch_identity_key_cert_pairs();
  options.set_cert_request_type(GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  return grpc::experimental::TlsServerCredentials(options);
}

absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> MakeChannelCredentials(
    const Address& target, const TlsFlags& tls) {
  const absl::StatusOr<Transport> transport = Choose(target, tls);
  if (!transport.ok()) return transport.status();
  if (*transport == Transport::kClear) return grpc::InsecureChannelCredentials();
  grpc::experimental::TlsChannelCredentialsOptions options;
  options.set_certificate_provider(Watch(tls));
  options.watch_root_certs();
  options.watch_identity_key_cert_pairs();
  return grpc::experimental::TlsCredentials(options);
}

std::string PeerIdentity(const grpc::ServerContextBase& context) {
  const std::shared_ptr<const grpc::AuthContext> auth = context.auth_context();
  if (auth == nullptr || !auth->IsPeerAuthenticated()) return "";
  std::string identity;
  for (const grpc::string_ref& name : auth->GetPeerIdentity()) {
    absl::StrAppend(&identity, identity.empty() ? "" : ",",
                    absl::string_view(name.data(), name.size()));
  }
  return identity;
}

}  // namespace viommu

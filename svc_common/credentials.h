// Who may talk to whom: unix sockets and loopback in the clear, everything else over mutual TLS.
#ifndef VIOMMU_SVC_COMMON_CREDENTIALS_H_
#define VIOMMU_SVC_COMMON_CREDENTIALS_H_

#include <grpcpp/security/credentials.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server_context.h>

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "svc_common/address.h"
#include "svc_common/flags.h"

namespace viommu {

struct TlsFlags {
  std::string cert;  // PEM files
  std::string key;
  std::string ca;
  bool insecure = false;

  bool given() const { return !cert.empty() || !key.empty() || !ca.empty(); }
  void AddTo(FlagSet& flags);
};

// InvalidArgument: an address beyond this machine with neither certificates nor --insecure, only
// some of the three files, or a file that cannot be read. Certificates are read again when the
// files change, without a restart.
absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> MakeServerCredentials(
    const Address& listen, const TlsFlags& tls);
absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> MakeChannelCredentials(
    const Address& target, const TlsFlags& tls);

// The caller's identity: what its certificate names (SAN, else CN); empty in the clear, where the
// socket's permissions are the identity.
std::string PeerIdentity(const grpc::ServerContextBase& context);

}  // namespace viommu

#endif  // VIOMMU_SVC_COMMON_CREDENTIALS_H_

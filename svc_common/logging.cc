#include "svc_common/logging.h"

#include <grpc/support/log.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <atomic>
#include <cstdlib>
#include <memory>

#include "absl/strings/match.h"

namespace viommu {
namespace {

std::atomic<uint64_t> tls_handshakes_failed{0};

void TakeGrpcLine(gpr_log_func_args* args) {
  // src/core/tsi/ssl_transport_security.cc
  if (absl::StartsWith(args->message, "Handshake failed with fatal error")) {
    tls_handshakes_failed.fetch_add(1, std::memory_order_relaxed);
  }
  spdlog::debug("grpc: {}", args->message);
}

}  // namespace

void InitLogging(const std::string& program) {
  auto logger =
      std::make_shared<spdlog::logger>(program, std::make_shared<spdlog::sinks::stderr_sink_mt>());
  logger->set_pattern("%Y-%m-%dT%H:%M:%S.%e %n %l %v");
  const char* level = std::getenv("VIOMMU_LOG_LEVEL");
  logger->set_level(level == nullptr ? spdlog::level::info : spdlog::level::from_str(level));
  logger->flush_on(spdlog::level::trace);
  spdlog::set_default_logger(logger);
  gpr_set_log_verbosity(GPR_LOG_SEVERITY_ERROR);
  gpr_set_log_function(TakeGrpcLine);
}

uint64_t TlsHandshakesFailed() { return tls_handshakes_failed.load(std::memory_order_relaxed); }

}  // namespace viommu

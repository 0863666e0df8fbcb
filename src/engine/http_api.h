// The HTTP API of one engine: SGLang's native endpoints and OpenAI's, with the bodies, defaults, error shapes and
// stream formats that docs/engine-api.md describes.
//
// One request of a client becomes one or more requests of the Backend (a sample of a prompt each) and exactly one
// answer. Text is made and cut here: ranks see token ids only.
#pragma once

#include <memory>

#include "base/result.h"
#include "engine/backend.h"
#include "engine/options.h"
#include "engine/served_model.h"
#include "net/server.h"
#include "obs/metrics.h"

namespace sluice::net {
class TlsContext;
}

namespace sluice::engine {

enum class ServerStatus { kStarting, kUp, kDraining };

class HttpApi {
 public:
  // `backend` and `metrics` outlive the API, and the environment is one that server_environment() takes. Declares its
  // families in `metrics` (sglang:*), also those of the ranks. `traces`: how the receiver of --otlp-traces-endpoint is
  // spoken to over TLS; null: as the system has it.
  HttpApi(const EngineOptions& options, ServedModel model, Backend& backend, obs::Metrics& metrics,
          std::shared_ptr<net::TlsContext> traces = nullptr);
  // The server whose handler this is must be gone.
  ~HttpApi();

  // Ends what goes on in the background, whose clients nobody waits for, and logs which responses that were. Before the
  // backend, the server and its loops go; nothing begins in the background any more. Any thread but a loop's.
  void stop();

  // For net::Server; valid while the API lives.
  net::Handler handler();

  // Any thread. /health is 503 unless the status is kUp, and /server_info shows it; other endpoints serve all the same,
  // as far as ranks are ready. Starts as kStarting.
  void set_status(ServerStatus status);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace sluice::engine

// The front process of an engine: finds and describes the model, starts the ranks through the DataParallelController
// and serves HTTP. `sluice server` is a thin shell around it.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string_view>

#include "base/clock.h"
#include "base/result.h"
#include "engine/options.h"

namespace sluice::obs {
class Metrics;
}

namespace sluice::engine {

struct FrontHooks {
  // Share of the start-up that is done, and what is being done. Any thread.
  std::function<void(double share, std::string_view what)> on_progress = {};
  // Gets what the ranks log, line by line, instead of our stderr. Any thread.
  std::function<void(std::string_view line)> on_rank_line = {};
  // Once readable, the start ends with kCancelled. -1: none.
  int stop_descriptor = -1;
};

class Front {
 public:
  // Serves when it returns. The port is bound first and answers 503 until then, so that a taken port is known at once.
  // An error has left nothing running.
  static Result<std::unique_ptr<Front>> start(const EngineOptions& options, FrontHooks hooks);
  // Ends at once what drain() has left, and the ranks.
  ~Front();

  uint16_t port() const;
  obs::Metrics& metrics();

  // /health turns to 503, no connection is accepted any more, and what is in flight may end within `grace`. Returns how
  // many requests were cut off.
  size_t drain(Duration grace);

 private:
  class Impl;
  explicit Front(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace sluice::engine

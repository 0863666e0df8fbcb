#include "base/ready_pipe.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/log.h"
#include "base/process.h"

namespace sluice {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kLongestLine = 3000;  // below PIPE_BUF, so that lines of several threads do not mix

}  // namespace

struct ReadyReporter::State {
  int descriptor;
  log::RateLimit limit;

  void send(const Json& report) const {
    std::string line = report.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
    if (descriptor < 0 || line.size() > kLongestLine) return;
    // The parent may be gone or slow; a worker goes on either way.
    const ssize_t n = ::write(descriptor, line.data(), line.size());
    (void)n;
  }
};

ReadyReporter ReadyReporter::from_environment() {
  return ReadyReporter(inherited_descriptor(kReadyVariable).value_or(-1));
}

ReadyReporter::ReadyReporter(int descriptor) : state_(std::make_unique<State>()) {
  state_->descriptor = descriptor;
  if (descriptor >= 0) ::fcntl(descriptor, F_SETFL, O_NONBLOCK);
}

ReadyReporter::ReadyReporter(ReadyReporter&&) noexcept = default;

ReadyReporter::~ReadyReporter() {
  if (state_ && state_->descriptor >= 0) ::close(state_->descriptor);
}

void ReadyReporter::progress(double share, std::string_view what) {
  uint64_t held_back = 0;
  if (!state_->limit.due(log::monotonic_nanos(), 100'000'000, held_back)) return;
  state_->send({{"status", "progress"}, {"share", std::clamp(share, 0.0, 1.0)}, {"what", what.substr(0, 500)}});
}

void ReadyReporter::ready(std::string_view url) { state_->send({{"status", "ready"}, {"url", url}}); }

void ReadyReporter::failed(std::string_view why) { state_->send({{"status", "failed"}, {"what", why.substr(0, 500)}}); }

std::vector<ReadyReport> ReadyParser::feed(std::string_view bytes) {
  partial_ += bytes;
  std::vector<ReadyReport> reports;
  size_t begin = 0;
  for (size_t end; (end = partial_.find('\n', begin)) != std::string::npos; begin = end + 1) {
    const auto line = Json::parse(std::string_view(partial_).substr(begin, end - begin), nullptr, false);
    if (!line.is_object()) continue;
    const auto text = [&](const char* key) {
      const auto found = line.find(key);
      return found != line.end() && found->is_string() ? found->get<std::string>() : std::string();
    };
    ReadyReport report{.what = text("what"), .url = text("url")};
    const auto share = line.find("share");
    if (share != line.end() && share->is_number()) report.share = std::clamp(share->get<double>(), 0.0, 1.0);
    const std::string status = text("status");
    if (status == "ready") {
      report.status = ReadyReport::Status::kReady;
    } else if (status == "failed") {
      report.status = ReadyReport::Status::kFailed;
    } else if (status != "progress") {
      continue;
    }
    reports.push_back(std::move(report));
  }
  partial_.erase(0, begin);
  if (partial_.size() > kLongestLine) partial_.clear();
  return reports;
}

}  // namespace sluice

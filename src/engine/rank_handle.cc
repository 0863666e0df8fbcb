#include "engine/rank_handle.h"

#include <csignal>

namespace sluice::engine {
namespace {

std::string last_line(const std::string& text) {
  const size_t end = text.find_last_not_of('\n');
  if (end == std::string::npos) return "";
  const size_t before = text.rfind('\n', end);
  const size_t begin = before == std::string::npos ? 0 : before + 1;
  return text.substr(begin, end - begin + 1);
}

class LocalRank final : public RankHandle {
 public:
  LocalRank(Process process, std::shared_ptr<parallel::ShmSegment> shown_in)
      : process_(std::move(process)), shown_in_(std::move(shown_in)) {}

  pid_t pid() const override { return process_.pid(); }
  std::optional<ProcessSigns> signs() const override { return read_process_signs(process_.pid()); }
  int descriptor() const override { return process_.pidfd(); }
  std::optional<ExitStatus> poll() override { return process_.poll(); }
  std::optional<ExitStatus> wait(Duration bound) override { return process_.wait(bound); }
  void signal(int number) override { process_.signal(number); }
  std::string cause() const override {
    auto status = process_.poll();
    return status ? cause_of_end(*status, process_.stderr_tail()) : "";
  }
  std::string place() const override { return {}; }
  std::string last_seen() const override { return shown_in_ ? parallel::to_string(shown_in_->signs()[0].where()) : ""; }

 private:
  mutable Process process_;  // poll() of one that was reaped changes nothing
  const std::shared_ptr<parallel::ShmSegment> shown_in_;
};

}  // namespace

std::unique_ptr<RankHandle> handle_of(Process process, std::shared_ptr<parallel::ShmSegment> shown_in) {
  return std::make_unique<LocalRank>(std::move(process), std::move(shown_in));
}

std::string cause_of_end(const ExitStatus& status, const std::string& stderr_tail) {
  // What it wrote last is the cause where it ended itself, a broken invariant (SIGABRT) included; a kill has nothing to
  // do with it.
  const bool by_itself = status.signal == 0 || status.signal == SIGABRT;
  const std::string line = by_itself ? last_line(stderr_tail) : "";
  return line.empty() ? status.to_string() : fmt::format("{}: {}", status.to_string(), line);
}

}  // namespace sluice::engine

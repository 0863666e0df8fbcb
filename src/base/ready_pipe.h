// How a worker tells the process that started it how far it has come: JSON lines through an inherited pipe whose number
// is in SLUICE_READY_FD:
//   {"status":"progress","share":0.4,"what":"loading weights"}
//   {"status":"ready","url":"http://127.0.0.1:31000"}
//   {"status":"failed","what":"..."}
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace sluice {

inline constexpr const char* kReadyVariable = "SLUICE_READY_FD";
// The number of the memory file in which workers of one host share their packed weights, where the parent made one.
inline constexpr const char* kWeightsVariable = "SLUICE_WEIGHTS_FD";

// The worker's side. Never waits: progress that finds the pipe full is dropped. Any thread.
class ReadyReporter {
 public:
  // Reports nowhere if this process was not started with a ready pipe. Call once, before threads start.
  static ReadyReporter from_environment();
  explicit ReadyReporter(int descriptor);  // takes it; -1 = nowhere
  ReadyReporter(ReadyReporter&&) noexcept;
  ~ReadyReporter();

  // `share` of the start-up that is done, 0 to 1. At most ten a second are sent.
  void progress(double share, std::string_view what);
  // Serving at `url`.
  void ready(std::string_view url);
  void failed(std::string_view why);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

struct ReadyReport {
  enum class Status { kProgress, kReady, kFailed };
  Status status = Status::kProgress;
  double share = 0;
  std::string what;
  std::string url;
};

// The parent's side: give it what the pipe's end gave; lines that are no reports are skipped.
class ReadyParser {
 public:
  std::vector<ReadyReport> feed(std::string_view bytes);

 private:
  std::string partial_;
};

}  // namespace sluice

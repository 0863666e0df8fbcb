#include "bench/progress.h"

#include <algorithm>
#include <cmath>

namespace sluice::bench {
namespace {

constexpr size_t kLeastBar = 5;
constexpr size_t kMostBar = 40;

std::string clock_text(double seconds) {
  const auto s = static_cast<int64_t>(seconds);
  if (s < 3600) return fmt::format("{:02}:{:02}", s / 60, s % 60);
  return fmt::format("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60);
}

// `share` of `columns`, in eighths of a column.
std::string bar(double share, size_t columns) {
  constexpr std::string_view kEighths[] = {" ", "▏", "▎", "▍", "▌", "▋", "▊", "▉", "█"};
  const auto eighths = static_cast<size_t>(std::floor(share * static_cast<double>(columns) * 8));
  std::string out;
  for (size_t i = 0; i < columns; ++i) out += kEighths[std::clamp<size_t>(eighths, i * 8, i * 8 + 8) - i * 8];
  return out;
}

}  // namespace

std::string progress_line(const Progress& progress, size_t width) {
  const double elapsed = seconds(progress.elapsed);
  const auto done = static_cast<double>(progress.done);
  const auto total = static_cast<double>(progress.total);
  const double share = progress.total > 0 ? done / total : 0;
  const bool moving = progress.done > 0 && elapsed > 0;
  const double rate = moving ? done / elapsed : 0;
  const std::string head = fmt::format("{:3.0f}%|", std::floor(share * 100));
  std::string tail =
      fmt::format("| {}/{} [{}<{}, {}it/s]", progress.done, progress.total, clock_text(elapsed),
                  moving ? clock_text((total - done) / rate) : "?", moving ? fmt::format("{:.2f}", rate) : "?");
  if (progress.failed > 0) tail += fmt::format(", {} failed", progress.failed);
  const size_t fixed = head.size() + tail.size();
  if (fixed + kLeastBar > width) return (head + tail).substr(0, width);
  return head + bar(share, std::min(width - fixed, kMostBar)) + tail;
}

}  // namespace sluice::bench

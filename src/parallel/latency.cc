#include "parallel/latency.h"

#include <thread>

#include "base/check.h"

namespace sluice::parallel {
namespace {

class Delayed final : public Communicator {
 public:
  Delayed(std::unique_ptr<Communicator> inner, LatencyOptions options)
      : Communicator(inner->name(), inner->rank(), {inner->world_ranks().begin(), inner->world_ranks().end()}),
        inner_(std::move(inner)),
        options_(std::move(options)) {}

  void progress(const Progress& progress) override { inner_->progress(progress); }
  Progress last_progress(int rank) const override { return inner_->last_progress(rank); }
  void abort(std::string_view reason) override { inner_->abort(reason); }
  std::optional<Error> failure() const override { return inner_->failure(); }

  Result<void> run(const Collective& call) override {
    // All wait alike, so that nothing arrives before its time.
    if (const Duration delay = delay_of(call); delay > Duration::zero()) options_.sleep(delay);
    const uint64_t before = inner_->received_bytes();
    auto result = inner_->run(call);
    count_received(inner_->received_bytes() - before);
    return result;
  }

  Result<void*> host_buffer(size_t bytes) override { return inner_->host_buffer(bytes); }
  Result<std::shared_ptr<std::byte>> common_memory(size_t bytes) override { return inner_->common_memory(bytes); }

  Result<std::unique_ptr<Communicator>> subgroup(std::span<const int> members, int index,
                                                 std::string_view name) override {
    SLUICE_TRY(auto inner, inner_->subgroup(members, index, name));
    return inner ? add_latency(std::move(inner), options_) : nullptr;
  }

 private:
  int host_of(int rank) const {
    return options_.hosts.empty() ? world_rank(rank) : options_.hosts[static_cast<size_t>(world_rank(rank))];
  }

  Duration delay_of(const Collective& call) const {
    bool apart = false;
    size_t bytes = 0;
    for (int from = 0; from < size(); ++from) {
      if (host_of(from) == host_of(rank())) continue;
      apart = true;
      const bool reduces = call.kind == Kind::kAllReduce || call.kind == Kind::kReduceScatter;
      bytes += reduces ? bytes_out(call, rank(), size()) : range_from(call, rank(), from, size()).bytes;
    }
    if (!apart) return {};
    const double rate = options_.bytes_per_second;
    return options_.latency + (rate > 0 ? from_seconds(static_cast<double>(bytes) / rate) : Duration{});
  }

  const std::unique_ptr<Communicator> inner_;
  const LatencyOptions options_;
};

}  // namespace

std::unique_ptr<Communicator> add_latency(std::unique_ptr<Communicator> inner, LatencyOptions options) {
  if (!options.sleep) options.sleep = [](Duration time) { std::this_thread::sleep_for(time); };
  for (const int rank : inner->world_ranks()) {
    SLUICE_CHECK(options.hosts.empty() || rank < std::ssize(options.hosts), "no host of rank {}", rank);
  }
  return std::make_unique<Delayed>(std::move(inner), std::move(options));
}

}  // namespace sluice::parallel

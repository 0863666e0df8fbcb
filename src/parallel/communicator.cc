#include "parallel/communicator.h"

#include <algorithm>
#include <memory>

#include "base/check.h"

namespace sluice::parallel {

struct Communicator::DeviceMemory {
  ~DeviceMemory() { backend->release(at, bytes); }

  const kernels::Backend* backend;
  void* at;
  size_t bytes;
};

Communicator::Communicator(std::string name, int rank, std::vector<int> world_ranks)
    : name_(std::move(name)), rank_(rank), world_ranks_(std::move(world_ranks)) {
  SLUICE_CHECK(rank_ >= 0 && rank_ < size(), "rank {} of {}", rank_, size());
}

Communicator::~Communicator() = default;

Result<void> Communicator::barrier() { return call({}, {.kind = Kind::kBarrier}); }

Result<void> Communicator::broadcast(const Context& context, Element element, void* data, int64_t count, int root) {
  return call(context,
              {.kind = Kind::kBroadcast, .element = element, .root = root, .in = data, .out = data, .count = count});
}

Result<void> Communicator::all_reduce(const Context& context, Element element, const void* in, void* out, int64_t count,
                                      Reduction reduction) {
  return call(
      context,
      {.kind = Kind::kAllReduce, .element = element, .reduction = reduction, .in = in, .out = out, .count = count});
}

Result<void> Communicator::all_gather(const Context& context, Element element, const void* in, void* out,
                                      int64_t count) {
  return call(context, {.kind = Kind::kAllGather, .element = element, .in = in, .out = out, .count = count});
}

Result<void> Communicator::all_gather_v(const Context& context, Element element, const void* in, void* out,
                                        std::span<const int64_t> counts) {
  return call(context, {.kind = Kind::kAllGather, .element = element, .in = in, .out = out, .counts = counts});
}

Result<void> Communicator::reduce_scatter(const Context& context, Element element, const void* in, void* out,
                                          int64_t count, Reduction reduction) {
  return call(
      context,
      {.kind = Kind::kReduceScatter, .element = element, .reduction = reduction, .in = in, .out = out, .count = count});
}

Result<void> Communicator::reduce_scatter_v(const Context& context, Element element, const void* in, void* out,
                                            std::span<const int64_t> counts, Reduction reduction) {
  return call(context, {.kind = Kind::kReduceScatter,
                        .element = element,
                        .reduction = reduction,
                        .in = in,
                        .out = out,
                        .counts = counts});
}

Result<void> Communicator::all_to_all_v(const Context& context, Element element, const void* in,
                                        std::span<const int64_t> send_counts, void* out,
                                        std::span<const int64_t> recv_counts) {
  return call(context, {.kind = Kind::kAllToAll,
                        .element = element,
                        .in = in,
                        .out = out,
                        .counts = send_counts,
                        .recv_counts = recv_counts});
}

Result<void> Communicator::call(const Context& context, const Collective& call) {
  SLUICE_TRY_VOID(check_call(call, rank_, size()));
  if (context.backend && !context.backend->host_visible()) return call_staged(context, call);
  if (context.backend) context.backend->synchronize(context);
  return run(call);
}

Result<void> Communicator::call_staged(const Context& context, const Collective& call) {
  const kernels::Backend& device = *context.backend;
  staged_in_.resize(bytes_in(call, rank_, size()));
  staged_out_.resize(bytes_out(call, rank_, size()));
  device.copy_to_host(context, staged_in_.data(), call.in, staged_in_.size());
  device.synchronize(context);
  Collective staged = call;
  staged.in = staged_in_.data();
  staged.out = staged_out_.data();
  SLUICE_TRY_VOID(run(staged));
  device.copy_to_device(context, call.out, staged_out_.data(), staged_out_.size());
  return {};
}

Result<void*> Communicator::buffer(const Context& context, size_t bytes) {
  if (!context.backend || context.backend->host_visible()) return host_buffer(bytes);
  // What is sent was copied to the host before the call returned: one piece of memory is enough.
  if (!lent_ || lent_->backend != context.backend || lent_->bytes < bytes) {
    lent_.reset();
    SLUICE_TRY(void* const memory, context.backend->allocate(bytes));
    lent_.reset(new DeviceMemory{context.backend, memory, bytes});
  }
  return lent_->at;
}

Result<void*> Communicator::host_buffer(size_t bytes) {
  constexpr size_t kAlignment = 64;
  host_buffer_.resize(bytes + kAlignment);
  void* at = host_buffer_.data();
  size_t room = host_buffer_.size();
  return std::align(kAlignment, bytes, at, room);
}

Result<std::shared_ptr<std::byte>> Communicator::common_memory(size_t) { return std::shared_ptr<std::byte>(); }

Result<std::unique_ptr<Communicator>> Communicator::split(int64_t color, int64_t key, std::string_view name) {
  struct Wish {
    int64_t color;
    int64_t key;
  };
  const Wish mine{color, key};
  std::vector<Wish> wishes(world_ranks_.size());
  SLUICE_TRY_VOID(all_gather({}, Element::kI64, &mine, wishes.data(), 2));
  std::vector<int> members;
  for (int i = 0; color >= 0 && i < size(); ++i) {
    if (wishes[static_cast<size_t>(i)].color == color) members.push_back(i);
  }
  std::ranges::stable_sort(members, {}, [&](int i) { return wishes[static_cast<size_t>(i)].key; });
  const auto index = std::ranges::find(members, rank_) - members.begin();
  return subgroup(members, static_cast<int>(index), name);
}

}  // namespace sluice::parallel

#include "kernels/sim/sim_backend.h"

#include <fmt/format.h>
#include <sys/mman.h>

#include <cerrno>
#include <cstring>
#include <functional>
#include <map>
#include <mutex>

#include "base/check.h"
#include "kernels/cpu/cpu_backend.h"

namespace sluice::kernels {
namespace {

class SimStream final : public Stream {
 public:
  std::vector<std::function<void()>> queue;
};

class SimBackend final : public Backend {
 public:
  explicit SimBackend(int threads) : cpu_(make_cpu_backend(threads)) {}
  ~SimBackend() override {
    for (const auto& [memory, bytes] : regions_) ::munmap(memory, bytes);
  }

  std::string_view name() const override { return "sim"; }
  std::unique_ptr<Stream> make_stream() const override { return std::make_unique<SimStream>(); }

  Result<void*> allocate(size_t bytes) const override {
    bytes = std::max<size_t>(bytes, 1);
    void* memory = ::mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
      return Error{ErrorCode::kExhausted, fmt::format("no memory for {} bytes: {}", bytes, std::strerror(errno))};
    }
    const std::lock_guard lock(mu_);
    regions_[memory] = bytes;
    return memory;
  }
  void release(void* memory, size_t) const override {
    const std::lock_guard lock(mu_);
    const auto at = regions_.find(memory);
    SLUICE_CHECK(at != regions_.end(), "the sim device is asked to release what it did not allocate");
    ::munmap(memory, at->second);
    regions_.erase(at);
  }
  bool host_visible() const override { return false; }

  void copy_to_device(const Context& context, void* to, const void* from, size_t bytes) const override {
    if (bytes == 0) return;  // of an idle batch; memcpy takes no null pointer even then
    // The host may reuse its buffer at once, as with a staged copy.
    std::vector<char> staged(static_cast<const char*>(from), static_cast<const char*>(from) + bytes);
    enqueue(context, [to, staged = std::move(staged)] { std::memcpy(to, staged.data(), staged.size()); });
  }
  void copy_to_host(const Context& context, void* to, const void* from, size_t bytes) const override {
    if (bytes == 0) return;
    enqueue(context, [=] { std::memcpy(to, from, bytes); });
  }
  void copy(const Context& context, void* to, const void* from, size_t bytes) const override {
    enqueue(context, [=, this] { cpu_->copy({}, to, from, bytes); });
  }
  void clear(const Context& context, void* at, size_t bytes) const override {
    enqueue(context, [=, this] { cpu_->clear({}, at, bytes); });
  }
  void synchronize(const Context& context) const override {
    auto& queue = stream_of(context).queue;
    protect(PROT_READ | PROT_WRITE);
    for (const auto& work : queue) work();
    queue.clear();
    protect(PROT_NONE);
  }

  bool multiplies(DType dtype) const override { return cpu_->multiplies(dtype); }
  bool keeps(const LinearShape& shape) const override { return cpu_->keeps(shape); }
  bool fuses_gates(const LinearShape& shape) const override { return cpu_->fuses_gates(shape); }
  int64_t padded_rows(int64_t n) const override { return cpu_->padded_rows(n); }
  int64_t group_padding(int64_t groups) const override { return cpu_->group_padding(groups); }
  size_t packed_bytes(const LinearShape& shape) const override { return cpu_->packed_bytes(shape); }
  void pack(const LinearShape& shape, const RowReader& rows, void* to) const override { cpu_->pack(shape, rows, to); }

  void linear(const Context& context, const LinearArgs& args) const override {
    // The shape is the caller's; a queued call keeps its own copy.
    enqueue(context, [this, own = LinearArgs(args), shape = *args.shape]() mutable {
      own.shape = &shape;
      cpu_->linear({}, own);
    });
  }
  void head_linear(const Context& context, const HeadLinearArgs& args) const override {
    enqueue(context, [this, own = HeadLinearArgs(args), shape = *args.shape]() mutable {
      own.shape = &shape;
      cpu_->head_linear({}, own);
    });
  }
  void embed(const Context& c, const EmbedArgs& args) const override { forward(c, args, &Backend::embed); }
  void rms_norm(const Context& c, const RmsNormArgs& args) const override { forward(c, args, &Backend::rms_norm); }
  void square_sum(const Context& c, const SquareSumArgs& args) const override {
    forward(c, args, &Backend::square_sum);
  }
  void rope_angles(const Context& c, const RopeAnglesArgs& args) const override {
    forward(c, args, &Backend::rope_angles);
  }
  void rope(const Context& c, const RopeArgs& args) const override { forward(c, args, &Backend::rope); }
  void store_kv(const Context& c, const StoreKvArgs& args) const override { forward(c, args, &Backend::store_kv); }
  void attention(const Context& c, const AttentionArgs& args) const override { forward(c, args, &Backend::attention); }
  void expanded_attention(const Context& context, const ExpandedAttentionArgs& args) const override {
    enqueue(context,
            [this, own = ExpandedAttentionArgs(args), key = *args.key_shape, value = *args.value_shape]() mutable {
              own.key_shape = &key;
              own.value_shape = &value;
              cpu_->expanded_attention({}, own);
            });
  }
  void latent_attention(const Context& c, const LatentAttentionArgs& args) const override {
    forward(c, args, &Backend::latent_attention);
  }
  void gated_linear(const Context& context, const GatedLinearArgs& args) const override {
    enqueue(context, [this, own = GatedLinearArgs(args), shape = *args.product.shape]() mutable {
      own.product.shape = &shape;
      cpu_->gated_linear({}, own);
    });
  }
  void gated_grouped_linear(const Context& context, const GatedGroupedLinearArgs& args) const override {
    enqueue(context, [this, own = GatedGroupedLinearArgs(args), shape = *args.product.shape]() mutable {
      own.product.shape = &shape;
      cpu_->gated_grouped_linear({}, own);
    });
  }
  void silu_mul(const Context& c, const SiluMulArgs& args) const override { forward(c, args, &Backend::silu_mul); }
  void gather_rows(const Context& c, const GatherRowsArgs& args) const override {
    forward(c, args, &Backend::gather_rows);
  }
  void route(const Context& c, const RouteArgs& args) const override { forward(c, args, &Backend::route); }
  void sort_by_expert(const Context& c, const SortByExpertArgs& args) const override {
    forward(c, args, &Backend::sort_by_expert);
  }
  void scatter_rows(const Context& c, const ScatterRowsArgs& args) const override {
    forward(c, args, &Backend::scatter_rows);
  }
  void pack_rows(const Context& c, const PackRowsArgs& args) const override { forward(c, args, &Backend::pack_rows); }
  void unpack_rows(const Context& c, const UnpackRowsArgs& args) const override {
    forward(c, args, &Backend::unpack_rows);
  }
  void grouped_linear(const Context& context, const GroupedLinearArgs& args) const override {
    enqueue(context, [this, own = GroupedLinearArgs(args), shape = *args.shape]() mutable {
      own.shape = &shape;
      cpu_->grouped_linear({}, own);
    });
  }
  void combine_rows(const Context& c, const CombineRowsArgs& args) const override {
    forward(c, args, &Backend::combine_rows);
  }
  void lightning_attention(const Context& c, const LightningAttentionArgs& args) const override {
    forward(c, args, &Backend::lightning_attention);
  }
  void sigmoid_mul(const Context& c, const SigmoidMulArgs& args) const override {
    forward(c, args, &Backend::sigmoid_mul);
  }
  void scale(const Context& c, const ScaleArgs& args) const override { forward(c, args, &Backend::scale); }
  void choose_copies(const Context& c, const ChooseCopiesArgs& args) const override {
    forward(c, args, &Backend::choose_copies);
  }

 private:
  static SimStream& stream_of(const Context& context) {
    auto* stream = dynamic_cast<SimStream*>(context.stream);
    SLUICE_CHECK(stream != nullptr, "the sim device needs one of its own streams");
    return *stream;
  }
  void enqueue(const Context& context, std::function<void()> work) const {
    stream_of(context).queue.push_back(std::move(work));
  }
  template <class Args>
  void forward(const Context& context, const Args& args,
               void (Backend::*kernel)(const Context&, const Args&) const) const {
    enqueue(context, [this, args, kernel] { ((*cpu_).*kernel)({}, args); });
  }
  void protect(int access) const {
    const std::lock_guard lock(mu_);
    for (const auto& [memory, bytes] : regions_) {
      SLUICE_CHECK(::mprotect(memory, bytes, access) == 0, "mprotect of sim memory: {}", std::strerror(errno));
    }
  }

  std::unique_ptr<Backend> cpu_;
  mutable std::mutex mu_;
  mutable std::map<void*, size_t> regions_;
};

}  // namespace

std::unique_ptr<Backend> make_sim_backend(int threads) { return std::make_unique<SimBackend>(threads); }

}  // namespace sluice::kernels

// How the tokens of a step reach the experts that a router sends them to, whatever ranks these are on, and how what the
// experts make of them comes back. A family: `none`, where every rank has all tokens and its experts' summand is added
// to the others' later, and `deepep`, which sends rows (DeepEP's name for it).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "base/result.h"
#include "kernels/kernels.h"
#include "moe/deepep_mode.h"
#include "parallel/groups.h"

namespace sluice::moe {

struct Sizes {
  int64_t hidden = 0;
  int64_t experts = 0;  // of all ranks
  int64_t top_k = 0;
  kernels::DType dtype = kernels::DType::kF32;  // of rows on their way to experts; they come back in float32
  // Pairs of a token and one of this rank's experts that are computed at once at most: so many for each of max_tokens,
  // top_k or more; 0: as many as come. For Tokens::pieces.
  int64_t room = 0;
  bool operator==(const Sizes&) const = default;
};

// Tokens and where each goes.
struct Tokens {
  const void* x = nullptr;        // [n, hidden] of dtype
  const int32_t* ids = nullptr;   // [n, top_k]; those of experts on other ranks are not for this one
  const float* shares = nullptr;  // [n, top_k] what each expert's output is weighted by
  int64_t n = 0;
  // Numbers of tokens, in their order, that are computed one after another, since there is no room for the pairs of all
  // of them at once; empty: there is.
  std::span<const int64_t> pieces = {};
  float* out = nullptr;  // [n, hidden], to which the weighted outputs of this rank's experts are added
  // Where these are given, each row is of one expert, `ids` [n], and lies in a slab, where those of this rank's e-th
  // expert follow each other from row slab_starts[e] on: row i is row slab_rows[i] of `x` and `out`, which hold all of
  // the slab. There are no `shares`; what an expert makes of a row is written to `out`, and weighted in combine().
  const int32_t* slab_starts = nullptr;  // [experts of this rank]
  const int32_t* slab_rows = nullptr;    // [n]
};

// Used by the rank's thread; all ranks make the same calls, with whatever numbers of tokens.
class Dispatcher {
 public:
  virtual ~Dispatcher() = default;
  // Once; a rank has at most `max_tokens` tokens of its own in a step, and gets at most `max_received`. kExhausted.
  virtual Result<void> allocate(int64_t max_tokens, int64_t max_received) = 0;
  // Who sends how many rows to whom, before they are sent: short messages. `own`, this rank's tokens, stays as it is
  // until combine(). `exact`: without the slab, where there is a choice; the same on all ranks. It must be where a rank
  // has more than slab_tokens().
  virtual Result<void> agree(const kernels::Context& context, const Tokens& own, bool exact) = 0;
  // The rows of these tokens to the ranks of their experts: the tokens that this rank's experts are to compute, until
  // combine().
  virtual Result<Tokens> dispatch(const kernels::Context& context) = 0;
  // What all ranks' experts made of this rank's tokens is added to the `out` of agree()'s argument.
  virtual Result<void> combine(const kernels::Context& context) = 0;
  // That a rank may have in a step which goes through the slab; 0: there is none, or no choice.
  virtual int64_t slab_tokens() const { return 0; }
  // Rows of the slab that dispatch() may give; 0 = none.
  virtual int64_t slab_rows() const { return 0; }
  // That allocate() took.
  virtual size_t bytes() const { return 0; }
};

// For the layout's --moe-a2a-backend. `groups` null: one rank; they outlive the dispatcher, as does `backend`.
std::unique_ptr<Dispatcher> make_dispatcher(const kernels::Backend& backend, const parallel::Groups* groups,
                                            const Sizes& sizes, const DeepEpOptions& options = {});

}  // namespace sluice::moe

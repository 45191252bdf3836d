// The training step of JumpReLU, TopK, BatchTopK and Matryoshka BatchTopK SAEs as fused loops: one
// SAE, one thread, many steps a call.
//
// Axes: B batch, T samples of one tile, D d_in, H d_sae. A "row" is a sample. Rows of width D and H
// are padded with zeros to whole vectors, so that no loop needs a tail.
//
// Latents stand in n_levels nested levels, the first widths[level] of them in each, and each level
// reconstructs by itself. Only Matryoshka SAEs have more than one.
//
// A step goes tile by tile through the batch, so that everything a tile needs stays in the cache:
// encode (dense), activate, list what is active, decode (active latents only), the gradient at the
// latents, and the two outer products of the weights' gradients (active latents only). What an
// architecture does is one class at the end of this file; the losses are those of
// ../architectures.
//
// Every sum is taken in an order that depends on nothing but the SAE itself, so its result is the
// same bit for bit in any company.

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <type_traits>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
constexpr int W = 16;  // floats in a vector
constexpr int REGISTERS = 32;
#elif defined(__AVX__)
constexpr int W = 8;
constexpr int REGISTERS = 16;
#elif defined(__aarch64__)
constexpr int W = 4;
constexpr int REGISTERS = 32;
#else
constexpr int W = 4;
constexpr int REGISTERS = 16;
#endif

typedef float vec __attribute__((vector_size(W * 4)));
typedef int32_t ivec __attribute__((vector_size(W * 4)));
typedef int64_t lvec __attribute__((vector_size(W * 4)));
typedef float uvec __attribute__((vector_size(W * 4), aligned(4)));

static inline vec load(const float* p) { return *reinterpret_cast<const vec*>(p); }
static inline void store(float* p, vec v) { *reinterpret_cast<vec*>(p) = v; }
static inline vec loadu(const float* p) { return *reinterpret_cast<const uvec*>(p); }
static inline void storeu(float* p, vec v) { *reinterpret_cast<uvec*>(p) = v; }
static inline vec all(float x) { return vec{} + x; }
static inline vec where(ivec mask, vec a, vec b) { return mask ? a : b; }
static inline vec where(ivec mask, vec a) { return (vec)(mask & (ivec)a); }
static inline vec abs_(vec v) { return (vec)((ivec)v & (ivec{} + 0x7fffffff)); }

static inline bool any(ivec mask) {
    lvec parts = (lvec)mask;
    int64_t some = 0;
    for (int i = 0; i < W / 2; i++) some |= parts[i];
    return some;
}

static inline float total(vec v) {
    float sum = 0;
    for (int i = 0; i < W; i++) sum += v[i];
    return sum;
}

// f(n) for n from 1 to N, as a constant that loops can be unrolled by
template <int N, class F>
static inline void with_constant(int64_t n, F f) {
    if (n == N)
        f(std::integral_constant<int, N>{});
    else if constexpr (N > 1)
        with_constant<N - 1>(n, f);
}

static inline int64_t padded(int64_t n) { return (n + W - 1) / W * W; }

// exp of values ≤ 0, to about one unit in the last place; 0 far below.
// Cody-Waite reduction to |r| ≤ ln2 / 2 and the Taylor polynomial of degree 7.
static inline vec exp_negative(vec x) {
    x = where(x < all(-87.0f), all(-87.0f), x);
    vec magic = all(12582912.0f);  // 1.5 · 2²³: adding it rounds to an integer
    vec n = x * all(1.44269504f) + magic;
    ivec exponent = ((ivec)n - (ivec)magic) << 23;
    n -= magic;
    vec r = x - n * all(0.693359375f);
    r = r + n * all(2.12194440e-4f);
    vec p = all(1.0f / 5040);
    p = p * r + all(1.0f / 720);
    p = p * r + all(1.0f / 120);
    p = p * r + all(1.0f / 24);
    p = p * r + all(1.0f / 6);
    p = p * r + all(0.5f);
    p = p * r + all(1.0f);
    p = p * r + all(1.0f);
    return (vec)((ivec)p + exponent);
}

// ---------------------------------------------------------------------------------------------
// Dense products

constexpr int NR_MAX = REGISTERS == 32 ? 4 : 2;  // vectors of a panel

constexpr int rows_at_once(int nr) {
    return REGISTERS == 32 ? (nr == 4 ? 6 : nr == 3 ? 8 : nr == 2 ? 12 : 14) : (nr == 2 ? 5 : 10);
}

// c[MR × NR vectors] = init + onto + a[MR × K] · b[K × NR vectors], b one panel; OUTER: a lies
// across, as [K × MR], and b has rows of ldb
template <bool OUTER, int MR, int NR>
static void product_tile(int64_t K, const float* a, int64_t lda, const float* b, int64_t ldb,
                         float* c, int64_t ldc, const float* init, const float* onto) {
    vec acc[MR][NR];
    for (int i = 0; i < MR; i++)
        for (int j = 0; j < NR; j++) {
            acc[i][j] = init ? load(init + j * W) : vec{};
            if (onto) acc[i][j] += load(onto + i * ldc + j * W);
        }
    for (int64_t k = 0; k < K; k++) {
        vec row[NR];
        for (int j = 0; j < NR; j++) row[j] = load(b + k * (OUTER ? ldb : NR * W) + j * W);
        for (int i = 0; i < MR; i++) {
            vec value = all(OUTER ? a[k * lda + i] : a[i * lda + k]);
            for (int j = 0; j < NR; j++) acc[i][j] += value * row[j];
        }
    }
    for (int i = 0; i < MR; i++)
        for (int j = 0; j < NR; j++) store(c + i * ldc + j * W, acc[i][j]);
}

// c[M × N vectors] = init + onto + a · b, with b packed into panels of NR_MAX vectors unless OUTER;
// init is one row for all, onto laid out as c, and either may be missing
template <bool OUTER = false>
static void product(int64_t M, int64_t n_vectors, int64_t K, const float* a, int64_t lda,
                    const float* b, float* c, int64_t ldc, const float* init, const float* onto,
                    int64_t ldb = 0) {
    for (int64_t j = 0; j < n_vectors * W; j += NR_MAX * W)
        with_constant<NR_MAX>(std::min<int64_t>(NR_MAX, n_vectors - j / W), [&](auto nr) {
            constexpr int NR = decltype(nr)::value, MR = rows_at_once(NR);
            for (int64_t m = 0; m < M; m += MR)
                with_constant<MR>(std::min<int64_t>(MR, M - m), [&](auto mr) {
                    product_tile<OUTER, decltype(mr)::value, NR>(
                        K, OUTER ? a + m : a + m * lda, lda, OUTER ? b + j : b + j * K, ldb,
                        c + m * ldc + j, ldc, init ? init + j : nullptr,
                        onto ? onto + m * ldc + j : nullptr);
                });
        });
}

// A matrix [K × N] with strides, packed for `product`; columns beyond N are 0.
static void pack(const float* m, int64_t stride_k, int64_t stride_n, int64_t K, int64_t N,
                 float* panels) {
    int64_t n_vectors = padded(N) / W;
    for (int64_t j = 0; j < n_vectors; j += NR_MAX) {
        int64_t width = std::min<int64_t>(NR_MAX, n_vectors - j) * W;
        int64_t filled = std::min<int64_t>(width, N - j * W);
        float* panel = panels + j * W * K;
        const float* from = m + j * W * stride_n;
        for (int64_t k = 0; k < K; k++) {
            for (int64_t n = 0; n < filled; n++)
                panel[k * width + n] = from[k * stride_k + n * stride_n];
            for (int64_t n = filled; n < width; n++) panel[k * width + n] = 0;
        }
    }
}

// g[n × D] += a[T × n]ᵀ · x[T × D]
static void outer(int64_t T, int64_t n, int64_t d_vectors, const float* a, int64_t lda,
                  const float* x, int64_t ldx, float* g) {
    product<true>(n, d_vectors, T, a, lda, x, g, ldx, nullptr, g, ldx);
}

// ---------------------------------------------------------------------------------------------
// Products with sparse activations

constexpr int BLOCK = REGISTERS / 4;  // vectors of a row kept in registers

// out[0 … NB) += Σ_i value[i] · rows[index[i]]
template <int NB>
static inline void gather_rows(int64_t n, const int32_t* index, const float* value,
                               const float* rows, int64_t ldr, float* out) {
    vec acc[NB];
    for (int j = 0; j < NB; j++) acc[j] = load(out + j * W);
    for (int64_t i = 0; i < n; i++) {
        const float* row = rows + index[i] * ldr;
        vec v = all(value[i]);
        for (int j = 0; j < NB; j++) acc[j] += v * load(row + j * W);
    }
    for (int j = 0; j < NB; j++) store(out + j * W, acc[j]);
}

static inline void gather(int64_t n_vectors, int64_t n, const int32_t* index, const float* value,
                          const float* rows, int64_t ldr, float* out) {
    for (int64_t j = 0; j < n_vectors * W; j += BLOCK * W)
        with_constant<BLOCK>(std::min<int64_t>(BLOCK, n_vectors - j / W), [&](auto nb) {
            gather_rows<decltype(nb)::value>(n, index, value, rows + j, ldr, out + j);
        });
}

static inline float dot(int64_t n_vectors, const float* a, const float* b) {
    vec s0{}, s1{};
    int64_t j = 0;
    for (; j + 2 <= n_vectors; j += 2) {
        s0 += load(a + j * W) * load(b + j * W);
        s1 += load(a + j * W + W) * load(b + j * W + W);
    }
    if (j < n_vectors) s0 += load(a + j * W) * load(b + j * W);
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)(s0 + s1));
#else
    return total(s0 + s1);
#endif
}

constexpr int64_t TILE = 64;  // samples of a tile, and bits of a mask

// Two rows of gradients at once, for all samples whose bit is set:
// g1[0 … NB) += Σ a[t] · x[t, :] and g2 likewise of b and y
template <int NB>
static inline void gather_samples(uint64_t samples, const float* a, const float* b, int64_t lda,
                                  const float* x, const float* y, int64_t ldx, float* g1,
                                  float* g2) {
    vec acc1[NB], acc2[NB];
    for (int j = 0; j < NB; j++) acc1[j] = load(g1 + j * W), acc2[j] = load(g2 + j * W);
    for (; samples; samples &= samples - 1) {
        int64_t t = __builtin_ctzll(samples);
        vec v1 = all(a[t * lda]), v2 = all(b[t * lda]);
        for (int j = 0; j < NB; j++) {
            acc1[j] += v1 * load(x + t * ldx + j * W);
            acc2[j] += v2 * load(y + t * ldx + j * W);
        }
    }
    for (int j = 0; j < NB; j++) store(g1 + j * W, acc1[j]), store(g2 + j * W, acc2[j]);
}

using mask_t = uint16_t;  // a bit for each float of a vector

// A mask for each vector of a row: of what is not 0, NaN included.
static inline int64_t mask_active(const float* row, int64_t n, mask_t* masks) {
    int64_t count = 0;
    for (int64_t i = 0; i < n; i += W) {
#if defined(__AVX512F__)
        mask_t mask = _mm512_cmp_ps_mask(_mm512_load_ps(row + i), _mm512_setzero_ps(), _CMP_NEQ_UQ);
#else
        mask_t mask = 0;
        for (int j = 0; j < W; j++) mask |= mask_t((row[i + j] != 0) << j);
#endif
        masks[i / W * TILE] = mask;
        count += __builtin_popcount(mask);
    }
    return count;
}

// Indices and values of what the masks of a row say.
static inline void list_active(const float* row, int64_t n, const mask_t* masks, int32_t* index,
                               float* value) {
    int64_t count = 0;
#if defined(__AVX512F__)
    __m512i at = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    for (int64_t i = 0; i < n; i += W) {
        __mmask16 mask = masks[i / W * TILE];
        // Compressing into a register and storing it whole: into memory is slow on some machines.
        _mm512_storeu_si512(index + count, _mm512_maskz_compress_epi32(mask, at));
        _mm512_storeu_ps(value + count, _mm512_maskz_compress_ps(mask, _mm512_load_ps(row + i)));
        count += __builtin_popcount(mask);
        at = _mm512_add_epi32(at, _mm512_set1_epi32(W));
    }
#else
    for (int64_t i = 0; i < n; i += W)
        for (unsigned mask = masks[i / W * TILE]; mask; mask &= mask - 1) {
            int64_t at = i + __builtin_ctz(mask);
            index[count] = int32_t(at);
            value[count++] = row[at];
        }
#endif
}

// From a mask of latents for each sample to a mask of samples for each latent.
static inline void transpose_masks(const mask_t* masks, uint64_t* samples) {
#if defined(__AVX512BW__)
    __m512i low = _mm512_loadu_si512(masks), high = _mm512_loadu_si512(masks + 32);
    for (int j = 0; j < W; j++) {
        __m512i bit = _mm512_set1_epi16(int16_t(1 << j));
        samples[j] = uint64_t(_mm512_test_epi16_mask(low, bit)) |
                     uint64_t(_mm512_test_epi16_mask(high, bit)) << 32;
    }
#else
    for (int j = 0; j < W; j++) {
        uint64_t bits = 0;
        for (int64_t t = 0; t < TILE; t++) bits |= uint64_t(masks[t] >> j & 1) << t;
        samples[j] = bits;
    }
#endif
}

// ---------------------------------------------------------------------------------------------
// Top-k without sorting

// The k-th largest of some values, and how many of those equal to it belong to the k largest.
struct Kth {
    float value;
    int64_t n_equal;       // values equal to it
    int64_t n_equal_kept;  // of them among the k largest
};

static int64_t gather_between(const float* values, int64_t n, float low, float high, float* out,
                              int64_t* n_above) {
    int64_t count = 0, above = 0;
#if defined(__AVX512F__)
    __m512 lo = _mm512_set1_ps(low), hi = _mm512_set1_ps(high);
    for (int64_t i = 0; i < n; i += W) {
        __m512 v = _mm512_load_ps(values + i);
        above += __builtin_popcount(_mm512_cmp_ps_mask(v, hi, _CMP_GT_OQ));
        __mmask16 mask = _mm512_cmp_ps_mask(v, lo, _CMP_GE_OQ) &
                         _mm512_cmp_ps_mask(v, hi, _CMP_LE_OQ);
        if (mask) {
            _mm512_storeu_ps(out + count, _mm512_maskz_compress_ps(mask, v));
            count += __builtin_popcount(mask);
        }
    }
#else
    ivec are_above{};
    for (int64_t i = 0; i < n; i += W) {
        vec v = load(values + i);
        ivec is_above = v > all(high), is_between = (v >= all(low)) & (v <= all(high));
        are_above -= is_above;  // a true comparison is −1
        if (!any(is_between)) continue;
        for (int j = 0; j < W; j++) {
            out[count] = v[j];
            count -= is_between[j];
        }
    }
    for (int j = 0; j < W; j++) above += are_above[j];
#endif
    *n_above = above;
    return count;
}

// The k-th largest of values[0 … n), of which more than k are at least `least`; `around` is a guess,
// right or wrong. Around the last value there are few candidates; only where it is not found there
// is everything looked at.
static Kth kth_largest(const float* values, int64_t n, int64_t k, float around, float least,
                       float* candidates) {
    for (float reach : {0.02f, 0.2f, INFINITY}) {
        bool everything = std::isinf(reach);
        if (!everything && !(around > 0)) continue;
        float low = everything ? least : around * (1 - reach);
        float high = everything ? INFINITY : around * (1 + reach);
        int64_t above;
        int64_t count = gather_between(values, n, low, high, candidates, &above);
        if (!(above < k && k <= above + count)) continue;
        float* kth = candidates + (k - above - 1);
        std::nth_element(candidates, kth, candidates + count, [](float a, float b) { return a > b; });
        Kth found{*kth, 0, 0};
        int64_t greater = above;
        for (int64_t i = 0; i < count; i++) {
            greater += candidates[i] > found.value;
            found.n_equal += candidates[i] == found.value;
        }
        found.n_equal_kept = k - greater;
        return found;
    }
    return Kth{INFINITY, 0, 0};  // not reached while the caller keeps its word
}

// acts = pre where rank is among the k largest, else 0; of equals the first are kept.
static void keep_largest(const float* rank, const float* pre, int64_t n, Kth kth, float* acts) {
    for (int64_t i = 0; i < n; i += W)
        store(acts + i, load(pre + i) * where(load(rank + i) >= all(kth.value), all(1.0f)));
    if (kth.n_equal > kth.n_equal_kept)
        for (int64_t i = 0, left = kth.n_equal_kept; i < n; i++)
            if (rank[i] == kth.value && left-- <= 0) acts[i] = 0;
}

const float SMALLEST = std::nextafter(0.0f, 1.0f);  // what is positive

// ---------------------------------------------------------------------------------------------
// What the caller hands over: struct Config and struct Sae are declared in ../compiled_step.py

enum Mode : int64_t { STEP = 0, TANH = 1, QUADRATIC = 2 };

// ---------------------------------------------------------------------------------------------
// Memory of a call

// Measured: a product that skips what is not active costs a little more per active latent than a
// dense one per latent.
constexpr double DENSE = 0.75;

// Measured: a dot product of its own costs about four times its share of a dense product.
constexpr int64_t SCARCE = 4;

struct Scratch {
    float *enc_panels, *dec_rows, *dec_panels, *dec_t_panels;
    float *dec_norm, *bias, *b_dec, *threshold;
    float *g_enc, *g_dec, *g_bias, *g_b_dec, *g_threshold, *g_norm, *grads;
    float *n_fired, *pre, *acts, *rank, *candidates;
    float* last_places;  // 0, and −∞ for the padding
    float* errors;  // of each level; later what the latents that join there are held to
    float *grad, *values;
    int32_t* index;
    mask_t* masks;      // of the latents active in each sample of a tile
    uint64_t* samples;  // a mask for each latent: of the samples of the tile it is active in
    int32_t* n_in_sample;
    float *dead_rows, *dead_panels, *dead_t_panels, *dead_acts, *dead_grad, *dead_error, *dead_rank;
    float *g_dead_enc, *g_dead_dec;
    int32_t* dead;

    // Returns how many floats it takes; from nowhere it only counts them.
    int64_t lay_out(const Config& c, bool selects, bool over_batch, float* start) {
        int64_t used = 0, D = padded(c.d_in), H = padded(c.d_sae);
        int64_t rows = selects ? c.max_batch + TILE : TILE;
        // floats, each array on cache lines of its own
        auto take = [&](int64_t n, auto&... places) {
            ((places = reinterpret_cast<std::remove_reference_t<decltype(places)>>(
                  start ? start + used : nullptr),
              used += (n + 31) / 32 * 32),
             ...);
        };
        take(c.d_in * H, enc_panels, dec_t_panels);
        take(c.d_sae * D, dec_rows, dec_panels);
        take(H, dec_norm, bias, threshold, g_bias, g_threshold, g_norm, n_fired);
        take(D, b_dec, g_b_dec);
        take(H * D, g_enc, g_dec);
        take(c.n_parameters, grads);
        take(rows * H, pre, acts);
        take(c.n_levels * TILE * D, errors);
        take(TILE * H, grad);
        take(H + W, values, index);
        take(H / W * TILE / 2, masks);
        take(H * 2, samples);
        take(TILE, n_in_sample);
        if (!selects) return used;
        take(over_batch ? rows * H : H, rank);
        take((over_batch ? rows * H : H) + W, candidates);
        take(H, last_places, dead, dead_rank);
        take(c.d_sae * D, dead_rows, dead_panels, g_dead_enc, g_dead_dec);
        take(c.d_in * H, dead_t_panels);
        take(TILE * H, dead_acts, dead_grad);
        take(TILE * D, dead_error);
        return used;
    }
};

// ---------------------------------------------------------------------------------------------
// What all architectures share; `Policy` is the one that derives from it

template <class Policy>
class Step {
  public:
    Step(const Config& c, Sae& s, Scratch& w)
        : c(c), s(s), w(w), D(padded(c.d_in)), H(padded(c.d_sae)) {}

    void run(const float* x, int64_t B, int64_t step, double step_size, double root_correction,
             double sparsity, bool with_metrics) {
        this->x = x, this->B = B, this->step = step, this->sparsity = sparsity;
        this->with_metrics = with_metrics;
        s.l0_loss = s.pre_act_loss = s.auxiliary_reconstruction_loss = 0;
        std::fill(s.mse_losses, s.mse_losses + c.n_levels, 0.0);
        s.n_active_last = 0;
        prepare();
        policy().begin();
        for (int64_t t = 0; t < B; t += TILE) tile(t, std::min(TILE, B - t));
        collect();
        finish(step_size, root_correction);
    }

  protected:
    const Config& c;
    Sae& s;
    Scratch& w;
    const int64_t D, H;  // padded
    const float* x = nullptr;
    int64_t B = 0, step = 0;
    double sparsity = 0;  // the coefficient, or k
    bool with_metrics = false;
    bool is_dense = false;  // nearly all latents of the tile are active

    Policy& policy() { return static_cast<Policy&>(*this); }

    // The first latent that joins at a level.
    int64_t start_of(int64_t level) const { return level ? c.widths[level - 1] : 0; }

    float* errors_of(int64_t level) const { return w.errors + level * TILE * D; }

    bool is_dead(int64_t h) const { return s.last_fired[h] < step - 1 - c.dead_window; }

    static double squares(const float* values, int64_t n) {
        vec sum{};
        for (int64_t i = 0; i < n; i += W) sum += load(values + i) * load(values + i);
        return double(total(sum));
    }

    static void copy(float* to, const float* from, int64_t n, int64_t width, float rest) {
        std::memcpy(to, from, n * sizeof(float));
        for (int64_t i = n; i < width; i++) to[i] = rest;
    }

    void encode(int64_t n, const float* rows, float* pre) {
        product(n, H / W, c.d_in, rows, D, w.enc_panels, pre, H, w.bias, nullptr);
    }

    // ∂L/∂acts of all latents: errors · W_decᵀ, here as everywhere B/2 times what it is called
    void decoder_gradient(int64_t T) {
        if (!is_packed_t) pack(w_dec(), 1, c.d_in, c.d_in, c.d_sae, w.dec_t_panels);
        is_packed_t = true;
        product(T, H / W, c.d_in, w.errors, D, w.dec_t_panels, w.grad, H, nullptr, nullptr);
    }

  private:
    // Most steps with few active latents need neither packing of the decoder.
    bool is_packed = false, is_packed_t = false;

    const float* w_dec() const { return s.params + c.W_dec; }

    void prepare() {
        const float* W_enc = s.params + c.W_enc;
        const float* W_dec = w_dec();
        pack(W_enc, c.d_sae, 1, c.d_in, c.d_sae, w.enc_panels);
        is_packed = is_packed_t = false;
        for (int64_t h = 0; h < c.d_sae; h++) {
            float* row = w.dec_rows + h * D;
            copy(row, W_dec + h * c.d_in, c.d_in, D, 0);
            w.dec_norm[h] = std::sqrt(dot(D / W, row, row));
        }
        for (int64_t h = c.d_sae; h < H; h++) w.dec_norm[h] = 0;
        copy(w.b_dec, s.params + c.b_dec, c.d_in, D, 0);
        copy(w.bias, s.params + c.b_enc, c.d_sae, H, 0);
        if (c.apply_b_dec)
            for (int64_t d = 0; d < c.d_in; d++) {
                float b = w.b_dec[d];
                for (int64_t h = 0; h < c.d_sae; h++) w.bias[h] -= b * W_enc[d * c.d_sae + h];
            }
        std::memset(w.g_enc, 0, c.d_sae * D * sizeof(float));
        std::memset(w.g_dec, 0, c.d_sae * D * sizeof(float));
        std::memset(w.g_b_dec, 0, D * sizeof(float));
        for (float* sums : {w.g_bias, w.g_threshold, w.g_norm, w.n_fired})
            std::memset(sums, 0, H * sizeof(float));
    }

    void tile(int64_t first, int64_t T) {
        const float* xt = x + first * D;
        float* pre = Policy::SELECTS ? w.pre + first * H : w.pre;
        float* acts = Policy::SELECTS ? w.acts + first * H : w.acts;
        policy().activate(T, xt, pre, acts);
        int64_t n_active = decode(T, xt, acts);
        s.n_active += double(n_active);
        s.n_active_last += double(n_active);
        if (with_metrics) {
            for (int64_t level = 0; level < c.n_levels; level++)
                s.mse_losses[level] += 1 / double(B) * squares(errors_of(level), T * D);
            policy().measure(T, pre, acts);
        }
        policy().auxiliary(T, xt, pre);
        // A latent is in its own level and in all wider ones.
        for (int64_t level = c.n_levels - 2; level >= 0; level--) {
            float *sums = errors_of(level), *wider = errors_of(level + 1);
            for (int64_t i = 0; i < T * D; i += W) store(sums + i, load(sums + i) + load(wider + i));
        }
        for (int64_t d = 0; d < D; d += W) {
            vec sum = load(w.g_b_dec + d);
            for (int64_t t = 0; t < T; t++) sum += load(w.errors + t * D + d);
            store(w.g_b_dec + d, sum);
        }
        policy().gradient(T, xt, pre, acts, n_active);
        outer_products(T, xt, acts);
    }

    // Who is active where, and the errors x̂ − x of each level.
    int64_t decode(int64_t T, const float* xt, const float* acts) {
        int64_t n_active = 0;
        std::memset(w.masks, 0, H / W * TILE * sizeof(mask_t));
        for (int64_t t = 0; t < T; t++) {
            w.n_in_sample[t] = int32_t(mask_active(acts + t * H, H, w.masks + t));
            n_active += w.n_in_sample[t];
        }
        for (int64_t h = 0; h < H; h += W) transpose_masks(w.masks + h / W * TILE, w.samples + h);
        for (int64_t h = 0; h < c.d_sae; h++)
            w.n_fired[h] += float(__builtin_popcountll(w.samples[h]));

        for (int64_t t = 0; t < T; t++)
            for (int64_t d = 0; d < D; d += W)
                store(w.errors + t * D + d, load(w.b_dec + d) - load(xt + t * D + d));
        is_dense = double(n_active) > DENSE * double(T * c.d_sae);
        if (is_dense) {
            for (int64_t level = 0; level < c.n_levels; level++) {
                int64_t start = start_of(level), n = c.widths[level] - start;
                float* panels = w.dec_panels + start * D;
                if (!is_packed) pack(w_dec() + start * c.d_in, c.d_in, 1, n, c.d_in, panels);
                product(T, D / W, n, acts + start, H, panels, errors_of(level), D, nullptr,
                        errors_of(std::max<int64_t>(level - 1, 0)));
            }
            is_packed = true;
            return n_active;
        }
        for (int64_t t = 0; t < T; t++) {
            list_active(acts + t * H, H, w.masks + t, w.index, w.values);
            int32_t *from = w.index, *end = w.index + w.n_in_sample[t];
            for (int64_t level = 0; level < c.n_levels; level++) {
                float* error = errors_of(level) + t * D;
                if (level) std::memcpy(error, error - TILE * D, D * sizeof(float));
                bool is_last = level == c.n_levels - 1;
                int32_t* to = is_last ? end : std::lower_bound(from, end, c.widths[level]);
                gather(D / W, to - from, from, w.values + (from - w.index), w.dec_rows, D, error);
                from = to;
            }
        }
        return n_active;
    }

    void outer_products(int64_t T, const float* xt, const float* acts) {
        // Beyond what is active the encoder's gradient is 0, unless a loss reaches past thresholds.
        if (is_dense || c.ste_to_input || c.has_pre_act_loss) {
            outer(T, c.d_sae, D / W, w.grad, H, xt, D, w.g_enc);
            for (int64_t level = 0; level < c.n_levels; level++) {
                int64_t start = start_of(level);
                outer(T, c.widths[level] - start, D / W, acts + start, H, errors_of(level), D,
                      w.g_dec + start * D);
            }
            return;
        }
        for (int64_t h = 0, level = 0; h < c.d_sae; h++) {
            level += h == c.widths[level];
            for (int64_t d = 0; d < D; d += BLOCK * W)
                with_constant<BLOCK>(std::min<int64_t>(BLOCK, (D - d) / W), [&](auto nb) {
                    gather_samples<decltype(nb)::value>(w.samples[h], acts + h, w.grad + h, H,
                                                        errors_of(level) + d, xt + d, D,
                                                        w.g_dec + h * D + d, w.g_enc + h * D + d);
                });
        }
    }

    // The flat gradient.
    void collect() {
        policy().end();
        const float* W_enc = s.params + c.W_enc;
        const float* W_dec = w_dec();
        std::memset(w.grads, 0, c.n_parameters * sizeof(float));
        std::memcpy(w.grads + c.b_enc, w.g_bias, c.d_sae * sizeof(float));
        std::memcpy(w.grads + c.b_dec, w.g_b_dec, c.d_in * sizeof(float));
        if (!Policy::SELECTS)
            std::memcpy(w.grads + c.threshold, w.g_threshold, c.d_sae * sizeof(float));
        constexpr int64_t BLOCKED = 16;  // both sides of a transposition stay in the cache
        for (int64_t h0 = 0; h0 < c.d_sae; h0 += BLOCKED)
            for (int64_t d0 = 0; d0 < c.d_in; d0 += BLOCKED)
                for (int64_t d = d0; d < std::min(d0 + BLOCKED, c.d_in); d++)
                    for (int64_t h = h0; h < std::min(h0 + BLOCKED, c.d_sae); h++)
                        w.grads[c.W_enc + d * c.d_sae + h] = w.g_enc[h * D + d];
        if (c.apply_b_dec)
            for (int64_t d = 0; d < c.d_in; d++) {
                float b = w.b_dec[d], sum = 0;
                for (int64_t h = 0; h < c.d_sae; h++) {
                    w.grads[c.W_enc + d * c.d_sae + h] -= b * w.g_bias[h];
                    sum += W_enc[d * c.d_sae + h] * w.g_bias[h];
                }
                w.grads[c.b_dec + d] -= sum;
            }
        for (int64_t h = 0; h < c.d_sae && !c.decoder_is_frozen; h++) {
            // A zero row has no direction to move along.
            float along = w.dec_norm[h] > 0 ? w.g_norm[h] / w.dec_norm[h] : 0;
            for (int64_t d = 0; d < c.d_in; d++)
                w.grads[c.W_dec + h * c.d_in + d] =
                    w.g_dec[h * D + d] + along * W_dec[h * c.d_in + d];
        }
    }

    // Clipping and Adam.
    void finish(double step_size, double root_correction) {
        const float scale = 2 / float(B);  // gradients are B/2 times their name so far
        vec sums[4] = {};
        for (int64_t i = 0; i < c.n_parameters; i += W) {
            vec g = loadu(w.grads + i);
            sums[i / W % 4] += g * g;
        }
        float norm = std::sqrt(total((sums[0] + sums[1]) + (sums[2] + sums[3]))) * scale;
        s.grad_norm = norm;
        // A mask hides a threshold that is not a number, where sae_lens' products would spread it.
        bool is_lost = !std::isfinite(norm);
        if (!Policy::SELECTS)
            for (int64_t h = 0; h < c.d_sae; h++) is_lost |= std::isnan(w.threshold[h]);
        if (is_lost && *s.diverged_at < 0) *s.diverged_at = step;
        float clip = 1 / (norm + 1e-6f);
        clip = (clip > 1 ? 1 : clip) * scale;  // NaN stays NaN
        const float beta1 = float(1 - c.beta1), beta2 = float(c.beta2), rest2 = float(1 - c.beta2);
        const float rate = float(step_size), correction = float(root_correction);
        for (int64_t i = 0; i < c.n_parameters; i++) {
            float g = w.grads[i] * clip;
            float m = s.exp_avg[i] + beta1 * (g - s.exp_avg[i]);
            float v = s.exp_avg_sq[i] * beta2 + rest2 * g * g;
            s.exp_avg[i] = m;
            s.exp_avg_sq[i] = v;
            s.params[i] -= rate * (m / (std::sqrt(v) / correction + 1e-8f));
        }
        for (int64_t h = 0; h < c.d_sae; h++) {
            if (w.n_fired[h] > 0) s.last_fired[h] = step;
            s.window_fired[h] += w.n_fired[h];
        }
    }
};

// ---------------------------------------------------------------------------------------------
// JumpReLU

class JumpReLU : public Step<JumpReLU> {
  public:
    using Step::Step;
    static constexpr bool SELECTS = false, OVER_BATCH = false;

    void begin() {
        float* threshold = s.params + c.threshold;
        for (int64_t h = 0; h < c.d_sae; h++) threshold[h] = threshold[h] < 0 ? 0 : threshold[h];
        copy(w.threshold, threshold, c.d_sae, H, INFINITY);
    }

    void activate(int64_t T, const float* xt, float* pre, float* acts) {
        encode(T, xt, pre);
        for (int64_t h = 0; h < H; h += W) {
            vec threshold = load(w.threshold + h);
            for (int64_t t = 0; t < T; t++) {
                vec v = load(pre + t * H + h);
                // A product, as sae_lens has it, so that NaN stays NaN.
                store(acts + t * H + h, v * where(v > threshold, all(1.0f)));
            }
        }
    }

    void gradient(int64_t T, const float*, const float* pre, const float* acts, int64_t) {
        gradient_where_read(T, pre);
        with_constant<3>(c.mode + 1, [&](auto mode) {
            constexpr int MODE = decltype(mode)::value - 1;
            c.ste_to_input ? at_latents<MODE, true>(T, pre, acts)
                           : at_latents<MODE, false>(T, pre, acts);
        });
        if (c.has_pre_act_loss) pre_act_gradient(T, pre);
    }

    void auxiliary(int64_t, const float*, const float*) {}

    void measure(int64_t T, const float* pre, const float* acts) {
        const double share = 1 / double(B);
        double loss = 0;
        if (c.mode == TANH) {
            for (int64_t h = 0; h < H; h += W) {
                vec twice = all(float(-2 * s.tanh_scale)) * load(w.dec_norm + h), sum{};
                for (int64_t t = 0; t < T; t++) {
                    vec e = exp_negative(twice * load(acts + t * H + h));
                    sum += (all(1.0f) - e) / (all(1.0f) + e);
                }
                loss += double(total(sum));
            }
        } else {
            for (int64_t t = 0; t < T; t++) {
                double n = w.n_in_sample[t], excess = n - s.target_l0;
                loss += c.mode == STEP ? n : 2 / s.target_l0 * excess * excess;
            }
        }
        s.l0_loss += share * sparsity * loss;
        for (int64_t h = 0; c.has_pre_act_loss && h < c.d_sae; h++) {
            if (!is_dead(h)) continue;
            double below = 0;
            for (int64_t t = 0; t < T; t++)
                below += std::max(0.0f, w.threshold[h] - pre[t * H + h]);
            s.pre_act_loss += share * s.pre_act_coefficient * below * w.dec_norm[h];
        }
    }

    void end() {}

  private:
    // ∂L/∂acts of latents that are active or within the bandwidth of their threshold; others' is
    // not read.
    void gradient_where_read(int64_t T, const float* pre) {
        const vec half_bandwidth = all(float(s.bandwidth / 2)), one = all(1.0f);
        int64_t n_read = 0;
        for (int64_t t = 0; t < T; t++) {
            float* grad = w.grad + t * H;
            for (int64_t h = 0; h < H; h += W) {
                vec v = load(pre + t * H + h), threshold = load(w.threshold + h);
                ivec is_read = (v > threshold) | (abs_(v - threshold) < half_bandwidth);
                store(grad + h, where(is_read, one));
            }
            n_read += mask_active(grad, H, w.masks + t);
        }
        if (SCARCE * n_read > T * c.d_sae) return decoder_gradient(T);
        for (int64_t h = 0; h < H; h += W)
            for (int64_t t = 0; t < T; t++)
                for (unsigned mask = w.masks[h / W * TILE + t]; mask; mask &= mask - 1) {
                    int64_t at = h + __builtin_ctz(mask);
                    w.grad[t * H + at] = dot(D / W, w.errors + t * D, w.dec_rows + at * D);
                }
    }

    // See the formulas in ../architectures/penalty.py.
    template <int MODE, bool STE_TO_INPUT>
    void at_latents(int64_t T, const float* pre, const float* acts) {
        const float coefficient = float(sparsity);
        const float inverse_bandwidth = float(1 / s.bandwidth);
        const vec half_bandwidth = all(float(s.bandwidth / 2));
        const float target = float(s.target_l0);
        const float pull = 2 * coefficient / (float(s.bandwidth) * target);
        const vec one = all(1.0f);
        for (int64_t h = 0; h < H; h += W) {
            vec threshold = load(w.threshold + h), norm = load(w.dec_norm + h);
            vec ste = threshold * all(inverse_bandwidth);
            vec slope = all(float(s.tanh_scale)) * norm;
            vec twice = all(-2.0f) * slope, weight = all(2 * coefficient) * slope;
            vec step_pull = all(coefficient * inverse_bandwidth / 2);
            vec g_threshold{}, g_bias{}, g_norm{};
            for (int64_t t = 0; t < T; t++) {
                vec v = load(pre + t * H + h), act = load(acts + t * H + h);
                vec g = load(w.grad + t * H + h);
                if (MODE == TANH) {
                    // 1 − tanh²(u) = 4 e / (1 + e)² with e = exp(−2u)
                    vec e = exp_negative(twice * act);
                    vec sum = one + e;
                    vec slant = weight * e / (sum * sum);
                    g += slant;
                    g_norm += slant * act;
                }
                vec q = ste * g;
                if (MODE == STEP) q += step_pull;
                if (MODE == QUADRATIC) q += all((float(w.n_in_sample[t]) - target) * pull);
                q = where(abs_(v - threshold) < half_bandwidth, q);
                g_threshold -= q;
                g = where(v > threshold, g);
                if (STE_TO_INPUT) g += q;
                g_bias += g;
                store(w.grad + t * H + h, g);
            }
            store(w.g_threshold + h, load(w.g_threshold + h) + g_threshold);
            store(w.g_bias + h, load(w.g_bias + h) + g_bias);
            store(w.g_norm + h, load(w.g_norm + h) + g_norm / (norm + where(norm == vec{}, one)));
        }
    }

    void pre_act_gradient(int64_t T, const float* pre) {
        const float coefficient = float(s.pre_act_coefficient / 2);
        for (int64_t h = 0; h < c.d_sae; h++) {
            if (!is_dead(h)) continue;
            float threshold = w.threshold[h], pulled = 0, n_below = 0;
            float weight = coefficient * w.dec_norm[h];
            for (int64_t t = 0; t < T; t++) {
                float below = threshold - pre[t * H + h];
                if (!(below > 0)) continue;
                pulled += below;
                n_below += 1;
                w.grad[t * H + h] -= weight;
            }
            w.g_norm[h] += coefficient * pulled;
            w.g_threshold[h] += weight * n_below;
            w.g_bias[h] -= weight * n_below;
        }
    }
};

// ---------------------------------------------------------------------------------------------
// TopK, BatchTopK, Matryoshka: which latents are active is settled for the whole batch first

template <class Policy>
class Selecting : public Step<Policy> {
    using Base = Step<Policy>;

  public:
    using Base::Base;
    static constexpr bool SELECTS = true;

    void begin() {
        for (int64_t h = 0; h < H; h++) w.last_places[h] = h < c.d_sae ? 0 : -INFINITY;
        if (s.aux_coefficient != 0) prepare_dead();
        this->encode(B, x, w.pre);
        this->policy().select();
    }

    void activate(int64_t, const float*, float*, float*) {}

    void measure(int64_t, const float*, const float*) {}

    // Dead latents reconstruct the residual of the living: of all, or of those of their level.
    void auxiliary(int64_t T, const float* xt, const float* pre) {
        int64_t level = c.aux_by_level ? 0 : c.n_levels - 1;
        for (int64_t first = 0, end = 0; end < n_dead; level++, first = end) {
            while (end < n_dead && w.dead[end] < c.widths[level]) end++;
            if (end > first) auxiliary(T, xt, pre, errors_of(level), first, end - first);
        }
    }

    // w.grad where something is active; g_bias with it.
    void gradient(int64_t T, const float*, const float*, const float* acts, int64_t n_active) {
        bool dense = c.n_levels == 1 && SCARCE * n_active > T * c.d_sae;
        if (dense) this->decoder_gradient(T);
        if (this->is_dense)  // then the outer products will read all of it
            for (int64_t i = 0; i < T * H; i += W)
                store(w.grad + i, where(load(acts + i) != vec{}, load(w.grad + i)));
        for (int64_t h = 0, level = 0; h < c.d_sae; h++) {
            level += h == c.widths[level];
            const float *row = w.dec_rows + h * D, *errors = errors_of(level);
            float sum = 0;
            for (uint64_t samples = w.samples[h]; samples; samples &= samples - 1) {
                int64_t t = __builtin_ctzll(samples);
                if (!dense) w.grad[t * H + h] = dot(D / W, errors + t * D, row);
                sum += w.grad[t * H + h];
            }
            w.g_bias[h] += sum;
        }
    }

    void end() {
        for (int64_t i = 0; i < n_dead; i++)
            for (int64_t d = 0; d < D; d += W) {
                float* dec = w.g_dec + w.dead[i] * D + d;
                float* enc = w.g_enc + w.dead[i] * D + d;
                store(dec, load(dec) + load(w.g_dead_dec + i * D + d));
                store(enc, load(enc) + load(w.g_dead_enc + i * D + d));
            }
    }

  protected:
    using Base::B, Base::D, Base::H, Base::c, Base::s, Base::sparsity, Base::w, Base::x;
    using Base::errors_of;

    // What the latents of a sample are ranked by. Those of the padding are never among the largest.
    vec rank(const float* pre, int64_t h) const {
        vec v = load(pre + h);
        if (c.rescale) v *= load(w.dec_norm + h);
        return v + load(w.last_places + h);
    }

  private:
    int64_t n_dead = 0;

    void prepare_dead() {
        n_dead = 0;
        for (int64_t h = 0; h < c.d_sae; h++)
            if (this->is_dead(h)) w.dead[n_dead++] = int32_t(h);
        for (int64_t i = 0; i < n_dead; i++)
            std::memcpy(w.dead_rows + i * D, w.dec_rows + w.dead[i] * D, D * sizeof(float));
        std::memset(w.g_dead_enc, 0, n_dead * D * sizeof(float));
        std::memset(w.g_dead_dec, 0, n_dead * D * sizeof(float));
    }

    // Some of the dead, n from the first on.
    void auxiliary(int64_t T, const float* xt, const float* pre, const float* errors, int64_t first,
                   int64_t n) {
        const int32_t* dead = w.dead + first;
        const float* rows = w.dead_rows + first * D;
        int64_t N = padded(n), k = std::max<int64_t>(c.d_in / 2, 1);
        double scale = s.aux_coefficient * std::min(double(n) / double(k), 1.0);
        activate_dead(T, pre, dead, n, std::min(k, n));
        // Packed anew for each tile: little beside the products, and rarely needed at all.
        pack(rows, D, 1, n, c.d_in, w.dead_panels);
        pack(rows, 1, D, c.d_in, n, w.dead_t_panels);
        // The error of their reconstruction: z · W_dec − residual, and the residual is −error.
        product(T, D / W, n, w.dead_acts, N, w.dead_panels, w.dead_error, D, nullptr, errors);
        if (this->with_metrics)
            s.auxiliary_reconstruction_loss +=
                scale / double(B) * Base::squares(w.dead_error, T * D);
        for (int64_t i = 0; i < T * D; i += W)
            store(w.dead_error + i, all(float(scale)) * load(w.dead_error + i));
        product(T, N / W, c.d_in, w.dead_error, D, w.dead_t_panels, w.dead_grad, N, nullptr,
                nullptr);
        for (int64_t i = 0; i < n; i++) {
            float sum = 0;
            for (int64_t t = 0; t < T; t++) {
                float& gradient = w.dead_grad[t * N + i];
                if (w.dead_acts[t * N + i] == 0) gradient = 0;
                sum += gradient;
            }
            w.g_bias[dead[i]] += sum;
        }
        outer(T, n, D / W, w.dead_acts, N, w.dead_error, D, w.g_dead_dec + first * D);
        outer(T, n, D / W, w.dead_grad, N, xt, D, w.g_dead_enc + first * D);
    }

    // The k largest of the dead latents of each sample. Decoder norms rank them, and cancel after.
    void activate_dead(int64_t T, const float* pre, const int32_t* dead, int64_t n, int64_t k) {
        int64_t N = padded(n);
        for (int64_t t = 0; t < T; t++) {
            float *acts = w.dead_acts + t * N, *rank = w.dead_rank;
            for (int64_t i = 0; i < n; i++) acts[i] = pre[t * H + dead[i]];
            for (int64_t i = n; i < N; i++) acts[i] = 0;
            if (k == n) continue;
            for (int64_t i = 0; i < n; i++)
                rank[i] = c.rescale ? acts[i] * w.dec_norm[dead[i]] : acts[i];
            for (int64_t i = n; i < N; i++) rank[i] = -INFINITY;
            keep_largest(rank, acts, N, kth_largest(rank, N, k, 0, -FLT_MAX, w.candidates), acts);
        }
    }
};

class TopK : public Selecting<TopK> {
  public:
    using Selecting::Selecting;
    static constexpr bool OVER_BATCH = false;

    void select() {
        int64_t k = int64_t(sparsity);
        int64_t n_more = int64_t(sparsity * double(B)) - k * B;  // samples that keep one more
        for (int64_t t = 0; t < B; t++) {
            float* ranks = w.rank;
            for (int64_t h = 0; h < H; h += W) store(ranks + h, rank(w.pre + t * H, h));
            int64_t mine = k + (t < n_more), above;
            Kth kth{SMALLEST, 0, 0};  // all that are positive
            if (gather_between(ranks, H, SMALLEST, INFINITY, w.candidates, &above) > mine)
                kth = mine ? kth_largest(ranks, H, mine, 0, SMALLEST, w.candidates)
                           : Kth{INFINITY, 0, 0};
            keep_largest(ranks, w.pre + t * H, H, kth, w.acts + t * H);
        }
    }
};

class BatchTopK : public Selecting<BatchTopK> {
  public:
    using Selecting::Selecting;
    static constexpr bool OVER_BATCH = true;

    void select() {
        int64_t k = int64_t(sparsity * double(B));
        vec smallest = all(INFINITY);  // of what is positive
        ivec positive{};
        for (int64_t t = 0; t < B; t++)
            for (int64_t h = 0; h < H; h += W) {
                vec v = rank(w.pre + t * H, h);
                store(w.rank + t * H + h, v);
                positive -= v > vec{};  // a true comparison is −1
                smallest = where((v > vec{}) & (v < smallest), v, smallest);
            }
        float low = INFINITY;
        int64_t n_positive = 0;
        for (int i = 0; i < W; i++) {
            low = std::min(low, smallest[i]);
            n_positive += positive[i];
        }
        Kth kth{low, 1, 1};
        if (k < n_positive)
            kth = k ? kth_largest(w.rank, B * H, k, float(s.kth_value), SMALLEST, w.candidates)
                    : Kth{INFINITY, 0, 0};
        s.kth_value = kth.value;
        keep_largest(w.rank, w.pre, B * H, kth, w.acts);
        if (std::isfinite(kth.value)) {
            double lr = s.topk_threshold_lr;
            *s.topk_threshold = (1 - lr) * *s.topk_threshold + lr * double(kth.value);
        }
    }
};

// ---------------------------------------------------------------------------------------------
// Codes of the non-negative lasso

constexpr int64_t SPAN = 64;  // codes of which the one that would move furthest is kept

// How far a code moves to its best value: the slope, but not below 0.
static inline vec move(vec slope, vec code) {
    return abs_(where(slope > -code, slope, -code));
}

// Greedy coordinate descent of one sample: moves the code that has furthest to go, until none has
// further than `tolerance`, or `most` have been moved. The slopes, and the rows of the Gram matrix
// (whose diagonal is 1), are padded to whole spans: with −∞, and with 0.
static void descend_one(const float* gram, int64_t n, float tolerance, int64_t most, float* slopes,
                        float* codes, float* furthest) {
    auto look = [&](int64_t at) {
        vec far{};
        for (int64_t i = at; i < at + SPAN; i += W) {
            vec v = move(load(slopes + i), load(codes + i));
            far = where(v > far, v, far);
        }
        float best = 0;
        for (int i = 0; i < W; i++) best = std::max(best, far[i]);
        furthest[at / SPAN] = best;
    };
    for (int64_t at = 0; at < n; at += SPAN) look(at);
    while (most-- > 0) {
        int64_t span = std::max_element(furthest, furthest + n / SPAN) - furthest;
        if (!(furthest[span] > tolerance)) return;
        int64_t j = span * SPAN;
        while (std::fabs(std::max(slopes[j], -codes[j])) != furthest[span]) j++;
        float step = std::max(slopes[j], -codes[j]);
        codes[j] += step;
        for (int64_t at = 0; at < n; at += SPAN) {
            for (int64_t i = at; i < at + SPAN; i += W)
                store(slopes + i, load(slopes + i) - all(step) * load(gram + j * n + i));
            look(at);
        }
    }
}

// ---------------------------------------------------------------------------------------------

template <class Policy>
struct Type {
    using type = Policy;
};

// f of the policy that the caller named
template <class F>
static auto with_policy(const Config& config, F f) {
    switch (config.policy) {
        case 0: return f(Type<JumpReLU>{});
        case 1: return f(Type<TopK>{});
        default: return f(Type<BatchTopK>{});
    }
}

static int64_t lay_out(const Config& config, Scratch& scratch, float* start) {
    return with_policy(config, [&](auto of) {
        using Policy = typename decltype(of)::type;
        return scratch.lay_out(config, Policy::SELECTS, Policy::OVER_BATCH, start);
    });
}

extern "C" {

int64_t vector_floats() { return W; }

// Floats of scratch memory that `advance` needs.
int64_t scratch_floats(const Config* config) {
    Scratch scratch;
    return lay_out(*config, scratch, nullptr);
}

// Take n_steps steps with each of some SAEs.
// x: a [batch × padded d_in] array per step, rows padded with zeros. sparsity: [n_steps × n_saes].
// memory: `scratch_floats` floats on a 64-byte boundary, for this call alone.
void advance(const Config* config, Sae* saes, int64_t n_saes, int64_t n_steps,
             const float* const* x, const int64_t* batch, int64_t first_step,
             const double* step_sizes, const double* root_corrections, const double* sparsity,
             int64_t with_metrics, float* memory) {
    Scratch scratch;
    lay_out(*config, scratch, memory);
    with_policy(*config, [&](auto of) {
        for (int64_t i = 0; i < n_saes; i++) {
            typename decltype(of)::type step(*config, saes[i], scratch);
            for (int64_t n = 0; n < n_steps; n++)
                step.run(x[n], batch[n], first_step + n, step_sizes[n], root_corrections[n],
                         sparsity[n * n_saes + i], with_metrics && n == n_steps - 1);
        }
    });
}

// The codes of some samples, which start at 0; `furthest` has room for n / SPAN floats.
void descend(const float* gram, int64_t n_samples, int64_t n, float tolerance, int64_t most,
             float* slopes, float* codes, float* furthest) {
    for (int64_t i = 0; i < n_samples; i++)
        descend_one(gram, n, tolerance, most, slopes + i * n, codes + i * n, furthest);
}
}

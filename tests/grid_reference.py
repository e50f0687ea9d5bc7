"""Context-coded indices of the stages grid and codebook, decoded as docs/stages.md says it, one number at a time: the reference decoder's part for them."""

from __future__ import annotations

import math

LOG2 = [round(256 * math.log2(1 + i / 256)) for i in range(256)]
EXP2 = [round(65536 * 2 ** (i / 256)) for i in range(256)]
LOGISTIC = [round(2**30 / (1 + 2 ** (20 - i / 64))) for i in range(2562)]
ONE = 2**30


def clamp(x: int, low: int, high: int) -> int:
    return min(max(x, low), high)


def log2(x: int) -> int:
    top = x.bit_length() - 1
    return 256 * top + LOG2[(x << 8 >> top) & 255]


def exp2(x: int) -> int:
    return (EXP2[x % 256] << (x // 256)) >> 16


def logistic(t: int) -> int:
    t = clamp(t, -20480, 20479) + 20480
    i = t >> 4
    return LOGISTIC[i] + (((LOGISTIC[i + 1] - LOGISTIC[i]) * (t % 16)) >> 4)


def share(a: int, b: int) -> int:
    return clamp(((a + 1) << 16) // (b + 2), 24, 65512)


class Decisions:
    """Bits out of bytes, with forecasts mixed and corrected."""

    def __init__(self, data: bytes) -> None:
        self.data, self.low, self.high, self.at, self.code = data, 0, 2**32 - 1, 0, 0
        for _ in range(4):
            self.code = self.code << 8 | self.next()
        self.weights = {(v, u): [39322, 26214, 0] for v in range(5) for u in (0, 1)}
        self.corrections = {node: [logistic(512 * (b - 16)) >> 14 for b in range(33)] for node in self.weights}

    def next(self) -> int:
        self.at += 1
        return self.data[self.at - 1] if self.at <= len(self.data) else 0

    def bit(self, p: int) -> int:
        width = self.high - self.low
        middle = self.low + (width >> 16) * p + (((width % 65536) * p) >> 16)
        bit = int(self.code <= middle)
        if bit:
            self.high = middle
        else:
            self.low = middle + 1
        while self.low >> 24 == self.high >> 24:
            self.low, self.high = (self.low << 8) % 2**32, (self.high << 8) % 2**32 + 255
            self.code = (self.code << 8) % 2**32 + self.next()
        return bit

    def mixed(self, node: tuple[int, int], p: int, q: int) -> int:
        x, y = log2(p) - log2(65536 - p), log2(q) - log2(65536 - q)
        w, a = self.weights[node], self.corrections[node]
        m = clamp((w[0] * x + w[1] * y + 256 * w[2]) >> 16, -3000, 3000)
        forecast, d = logistic(4 * m) >> 14, clamp(m, -2047, 2047) + 2048
        i, t = d >> 7, d % 128
        bit = self.bit(clamp((forecast + ((a[i] * (128 - t) + a[i + 1] * t) >> 7)) >> 1, 24, 65512))
        error = 65536 * bit - forecast
        for k, of in enumerate((x, y, 256)):
            w[k] += (of * error + 65536) >> 17
        i += t >= 64
        a[i] += (65536 * bit - a[i]) >> 6
        return bit


def factorize(c: list[list[int]], lower: list[list[int]]) -> None:
    q, s = len(c), 0
    while max(c[i][i] for i in range(q)) >> s >= 2**26:
        s += 1
    scaled = [[0] * q for _ in range(q)]
    for j in range(q):
        for i in range(j, q):
            x = (c[i][j] >> s) - sum((lower[i][v] * scaled[j][v]) >> 20 for v in range(j))
            if i == j:
                scaled[j][j] = max(x, 64)
            else:
                scaled[i][j] = clamp(x, -(2**28), 2**28)
                lower[i][j] = clamp((scaled[i][j] << 20) // scaled[j][j], -(2**24), 2**24)


def gain_of(products: int, squares: int) -> int:
    return clamp(products // (squares >> 16), -(2**18), 2**18)


def magnitude(decisions: Decisions, u: int, mu: int, a: int, b: int, over: tuple[int, int], negative: bool) -> int:
    def beyond(v: int, y: int) -> int:
        e = 256 * (2 * v - 1 - u)
        return logistic(((-e - mu) * y) >> 24) if negative else ONE - logistic(((e - mu) * y) >> 24)

    v, above, (x, x_b) = 1, 0, over
    for step in range(14):
        new = beyond(2 * v, a)
        if step < 3:
            new_b = beyond(2 * v, b)
            reached = decisions.mixed((2 + step, u), share(new, x), share(new_b, x_b))
            x_b = new_b
        else:
            reached = decisions.bit(share(new, x))
        if not reached:
            above = new
            break
        v, x = 2 * v, new
    z = v
    while z > 1:
        z //= 2
        new = beyond(v + z, a)
        if decisions.bit(share(new - above, x - above)):
            v, x = v + z, new
        else:
            above = new
    return v


def decode(data: bytes, n: int, shape: tuple[int, ...], at: int, m: int, state: int, h0: int, h1: int) -> list[int]:
    """n indices; h0 and h1 as the table of the document has them. Raises ValueError."""
    columns = math.prod(shape[1:]) if len(shape) > 1 else math.prod(shape)
    q = math.prod(shape[2:]) if len(shape) > 2 else 1
    q = q if 1 < q <= 64 else 1
    j, c = at % columns, columns
    if c > n:
        j, c = at % q, -(-(at % q + n) // q) * q
    decisions, indices, r = Decisions(data), [], 0
    g = exp2(32 * m)
    total, count, first = 8 * g, 8, True
    of_column, of_channel, of_place = [0] * c, [0] * (c // q), [0] * q
    lower, covariance = [[0] * q for _ in range(q)], [[10 * 65536 if i == k else 0 for k in range(q)] for i in range(q)]
    fresh, y, kernels, due = [0] * q, [0] * q, 0, 4
    row_sum = row_count = kernel_sum = channel_mean = recent = late = 0
    means, along, square, row_along, row_square, trust, usual, gain = [0] * c, 0, 0, 0, 0, 0, 0, 0
    for _ in range(n):
        p, h = j % q, j // q
        if j == 0 or first:
            g, row_sum, row_count = total // count, 0, 0
            recent = late = g
            trust = 8 * clamp(g, 128, 2**20) ** 2
            along, square = (along + row_along) >> 1, (square + row_square) >> 1
            usual = gain_of(along, square + trust)
            row_along = row_square = 0
            gain = usual
        if p == 0 or first:
            kernel_sum, channel_mean = 0, (of_channel[h] + 4 * g) // (r * q + 4)
        first = False
        if j % 4 == 0:
            gain = gain_of(row_along + ((trust * usual) >> 16), row_square + trust)
        middle = clamp(means[j] >> 8, -(2**20), 2**20)
        common = (gain * middle) >> 16 if q == 1 else 0
        mu = clamp(common + (sum(lower[p][i] * fresh[i] for i in range(p)) >> 20), -(2**24), 2**24)
        base = log2(g)
        row = log2(row_sum + 6 * g) - log2(row_count + 6) - base
        channel = log2(of_channel[h] + 4 * g) - log2(r * q + p + 4) - base
        place = log2(of_place[p] + 8 * g) - log2(r * (c // q) + h + 8) - base
        column = log2(of_column[j] + 4 * channel_mean) - log2(r + 4) - base
        kernel = log2(kernel_sum + 3 * late) - log2(p + 3) - base
        near = 20 * (log2(recent) - base) + 26 * (log2(late) - base) + 31 * kernel
        scale = clamp(base + ((143 * row + 102 * channel + 192 * place + 82 * column + near) >> 8), 512, 6400)
        wide = clamp(base + ((205 * row + 102 * channel + 205 * place + 102 * column) >> 8), 512, 6400)
        a, b = exp2(8960 - scale), exp2(8960 - wide)
        u = state % 2
        edge = 256 >> u
        over = ONE - logistic(((edge - mu) * a) >> 24), ONE - logistic(((edge - mu) * b) >> 24)
        under = logistic(((-edge - mu) * a) >> 24), logistic(((-edge - mu) * b) >> 24)
        k = 0
        if decisions.mixed((0, u), share(over[0] + under[0], ONE), share(over[1] + under[1], ONE)):
            if decisions.mixed((1, u), share(over[0], over[0] + under[0]), share(over[1], over[1] + under[1])):
                k = magnitude(decisions, u, mu, a, b, over, False)
            else:
                k = -magnitude(decisions, u, mu, a, b, under, True)
        indices.append(k)
        state = (state >> 1) ^ (h0 >> 1 if u else 0) ^ (h1 >> 1 if k % 2 else 0)
        y[p] = (512 * abs(k) - 256 * u) * (1 if k > 0 else -1) if k else 0
        fresh[p] = y[p] - mu
        row_along += clamp(y[p], -(2**20), 2**20) * middle
        row_square += middle * middle
        means[j] += ((256 * y[p] - means[j]) * max(65536 // (r + 2), 1024)) >> 16
        off = abs(fresh[p]) + 13
        of_column[j] += off
        of_channel[h] += off
        of_place[p] += off
        row_sum, kernel_sum, total = row_sum + off, kernel_sum + off, total + off
        row_count, count = row_count + 1, count + 1
        recent, late = recent + ((off - recent) >> 2), late + ((off - late) >> 4)
        if q > 1 and p == q - 1:
            z = exp2(max(6144 - wide, 0))
            t = [clamp((value * z) >> 16, -32768, 32767) for value in y]
            for i in range(q):
                for v in range(i + 1):
                    covariance[i][v] += t[i] * t[v]
            kernels += 1
            if kernels == due:
                due += max(kernels // 8, 4)
                factorize(covariance, lower)
        j += 1
        if j == c:
            j, r = 0, r + 1
    if decisions.at < len(data):
        raise ValueError("the file breaks a rule: every byte of coded indices is read")
    return indices
